"""Section 4 of the paper: tasks, costates and GRPO for any causal language model of ``transformers``."""
