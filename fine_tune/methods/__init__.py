"""The distillation methods, one module each, with their gate and losses."""
