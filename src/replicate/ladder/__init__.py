"""Where checkpoints come from: local snapshot folders, and the tiny OLMo-2 ladder that is trained here."""
