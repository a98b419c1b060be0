"""BERT classifiers: the encoder over rows, its products and their precision."""
