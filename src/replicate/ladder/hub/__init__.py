"""Checkpoints that are branches of repositories on the Hugging Face hub: listed, chosen, locked, checked, fetched."""
