"""What knows the inside of a transformer: hooks, adjoints, precision, logits, fresh models."""
