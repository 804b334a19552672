"""Section 4 of the paper: a language model as a recurrence, its costates, the sampling gap, attention, Theorem 1."""
