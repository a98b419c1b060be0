"""What every training run does, whatever it trains."""
