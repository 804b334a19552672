"""Replication and audit of the Value-Gradient Hypothesis of RL for LLMs (arXiv 2605.21654).

The subpackages follow the paper: :mod:`replicate.theory` its sections 2 and 3, :mod:`replicate.lm` section 4 (on
:mod:`replicate.models`), :mod:`replicate.impact` section 5; :mod:`replicate.rl`, :mod:`replicate.ladder` and
:mod:`replicate.runs` carry out section 6 with the parameters of :mod:`replicate.settings`, and :mod:`replicate.report`
judges and draws it with :mod:`replicate.statistics`.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version

from replicate import kernels

# Before anything imports torch or numpy: they choose their kernels once.
kernels.pin()

# tqdm says so on stderr, with a path, when a library first imports it inside a notebook without ipywidgets; text bars
# are what the suite wants.
warnings.filterwarnings("ignore", message="IProgress not found")

DISTRIBUTION = "value-gradient-replication"
"""The name to install by: the package index has another project under the import name."""

try:
    __version__ = version(DISTRIBUTION)
except PackageNotFoundError:  # used straight from a source tree
    __version__ = "0+unknown"
