"""In what the objectives of the GRPO family differ; :mod:`replicate.rl.grpo` has the table."""

from typing import Literal

Baseline = Literal["mean", "leave_one_out"]
Scale = Literal["std", "none"]
Length = Literal["sequence", "token", "constant"]
Credit = Literal["outcome", "to_go", "gae"]
Optimizer = Literal["adamw", "sgd"]
