"""LAD, the suite: task-specific distillation of BERT (LAD, LAD-NO, partial LAD, ALP-KD, ALP-KD-v2, BERT-PKD)."""
