"""Sweeps in processes of their own, which can be killed, or run beside each other."""

import json
import os
import signal
import time
from pathlib import Path

from replicate.runs import sweep


def start(params, report=None, **how):
    """Forks a process that runs a sweep; its number. What became of the jobs is left in the file ``report``."""
    child = os.fork()
    if child == 0:
        try:
            # Ignored where the tests run in the background of a shell.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            outcome = sweep.sweep(params, progress=False, **how)
            if report:
                said = {"done": outcome.done, "found": outcome.found, "problems": outcome.problems()}
                Path(report).write_text(json.dumps(said))
        finally:
            os._exit(0)
    return child


def wait_for(condition, seconds=180):
    """Returns once ``condition()`` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
