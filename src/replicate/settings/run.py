"""What is asked for, without deciding what any job computes."""

from typing import ClassVar

from pydantic import Field

from replicate.settings.section import LARGEST_SEED, MOST, Section, Text, distinct

# A step of a long pretraining run is counted in millions.
_LAST_STEP = 10**9


class Run(Section):
    """Where results go, which ladder is taken, which seeds RL runs with, and how many resamples intervals use.

    ``ladder`` is ``"tiny"`` (trained here, under ``ladder_dir``), a folder of snapshots, or another source's name;
    ``study`` is the folder from which notebooks read what several ladders say. Notebooks 05 to 08 look closely at three
    rungs of the ladder: at the steps ``rungs``, from before to after the climb (one or two will do), or, where none is
    named, those that the task's reward singles out. They keep below ``max_memory_gb`` (0: three quarters of what the
    machine has). No job's result depends on these but through the checkpoint and the seed that it is given.
    """

    about: ClassVar[str] = (
        'Where results go; the ladder ("tiny" trains it from the TINY_* parameters, else a folder of snapshots); the '
        "published study of several ladders; the seeds of RL; how many resamples the intervals use; the steps that "
        "notebooks 05 to 08 look at ([]: chosen by J) and the memory they may take (0: by the machine)."
    )

    run_dir: Text = "runs/smoke"
    ladder: Text = "tiny"
    ladder_dir: Text = "runs/ladders"
    study: Text = "results/study"
    rl_seeds: distinct(0, LARGEST_SEED) = Field([0, 1, 2])
    resamples: int = Field(500, ge=100, le=MOST)
    rungs: distinct(0, _LAST_STEP, fewest=0, longest=3) = Field([])
    max_memory_gb: float = Field(0.0, ge=0)
