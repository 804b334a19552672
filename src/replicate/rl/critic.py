"""A learned critic (being built)."""


class Critic:
    """Placeholder."""
