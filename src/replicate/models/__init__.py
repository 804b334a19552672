"""What knows the inside of a transformer: hooks, adjoints, Jacobians, precision, logits, fresh models."""
