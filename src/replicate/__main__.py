"""``python -m replicate``."""

from replicate.cli import main

main()
