"""Sections 2 and 3 of the paper on toy decision processes: float64, on the CPU, no transformer anywhere."""
