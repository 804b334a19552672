"""What ``make test-core`` adds to pytest: which tests the core does without is fixed here, and nothing else is skipped.

The core is the package without Jupyter, Papermill, TRL and Ray. Tests of these ask for them with
``pytest.importorskip``, and where they are missing a run is green whatever was skipped. So this plugin
(``-p tests.core_plugin``) refuses an environment that has one of them, or other libraries than those of
``requirements-core.lock``, and fails a run whose skipped tests are not exactly those listed in ``WITHOUT``, the
machine's own reasons apart.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

PYTHON = (3, 12)
LOCK = Path(__file__).parents[1] / "requirements-core.lock"
WITHOUT = {
    "rl/test_grpo_trl.py": "trl",
    "runs/test_main_job.py::test_a_failed_job_and_a_failed_notebook_are_said_and_the_others_are_done": "ipykernel",
    "runs/test_papermill.py::test_a_kernel_that_lost_the_race_for_its_ports_is_started_again": "papermill",
    "runs/test_papermill.py::test_nothing_to_execute_is_said": "nbformat",
    "runs/test_papermill.py::test_only_those_that_were_named_and_the_map_last": "nbformat",
    "runs/test_papermill.py::test_what_dies_is_one_failed_notebook_with_its_name": "papermill",
    "runs/test_params.py::test_every_flat_file_serves_every_notebook": "papermill",
    "runs/test_params.py::test_generated_files_are_current_and_a_change_is_seen": "nbformat",
    "runs/test_params.py::test_notebook_parameters_are_the_schema_with_its_defaults": "nbformat",
    "runs/test_params.py::test_papermill_hands_over_a_list_on_its_command_line_as_text": "papermill",
    "runs/test_paths.py::test_kernels_see_the_folders_that_the_command_sees": "ipykernel",
    "runs/test_preflight.py::test_notebooks_and_engines_that_are_not_there": "papermill",
    "runs/test_ray.py": "ray",
    "runs/test_strict_yaml.py::test_what_is_taken_is_what_papermill_reads": "papermill",
    "runs/test_sweep.py::test_records_do_not_depend_on_who_runs_the_jobs": "ray",
    "test_cli.py::test_every_command_refuses_before_any_work": "papermill",
    "test_hooks.py::test_an_entry_is_a_program_of_the_environment_and_scripts_and_commands_that_exist": "ruff",
    "test_notebooks.py": "nbformat",
    "test_trl_curves.py": "trl",
}
"""A module of tests, or one test, below ``tests/``; and what it needs that is not the core's."""

OF_THE_MACHINE = re.compile(r"strace|unshare|mount|/proc|CUDA|kernels|AVX2")
"""What other reasons to skip a test speak of: programs and hardware that one machine has and another has not."""


def pins() -> dict[str, str]:
    """The libraries of the core's lock file and their versions."""
    lines = LOCK.read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def environment() -> Iterator[str]:
    """What is wrong with the environment that runs this, in words."""
    if sys.version_info[:2] != PYTHON:
        yield f"Python: expected {PYTHON[0]}.{PYTHON[1]}, got {sys.version.split()[0]}"
    for name, wanted in pins().items():
        if (found := version(name).split("+")[0]) != wanted:
            yield f"{name}: expected {wanted}, got {found}"
    yield from (
        f"{name}: not the core's, but installed" for name in sorted(set(WITHOUT.values())) if find_spec(name)
    )


def wrong(skipped: Mapping[str, str]) -> list[str]:
    """How the tests skipped differ from ``WITHOUT``; ``skipped`` maps their names, without parameters, to a reason."""
    unlisted = [(name, reason) for name, reason in skipped.items() if name not in WITHOUT]
    unlisted = [(name, reason) for name, reason in unlisted if not OF_THE_MACHINE.search(reason)]
    return [
        *(f"{name}: skipped, but not in tests/core_plugin.py ({reason})" for name, reason in unlisted),
        *(f"{name}: not skipped, but in tests/core_plugin.py" for name in WITHOUT if name not in skipped),
    ]


class _Watch:
    """Notes what is skipped, and what runs, in this process and in the workers that it started."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self.ran = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report)
        self.ran += report.when == "call" and not report.skipped

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.note(report)

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped[report.nodeid.removeprefix("tests/").split("[")[0]] = str(report.longrepr[-1])

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == 0 and wrong(self.skipped):
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in wrong(self.skipped):
            terminalreporter.write_line(f"core: {line}", red=True)
        needs = ", ".join(sorted(set(WITHOUT.values())))
        terminalreporter.write_line(f"core: {self.ran} tests ran, {len(WITHOUT)} that need {needs} did not")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    if complaints := list(environment()):
        raise pytest.UsageError("core: " + "; ".join(complaints))
    config.pluginmanager.register(_Watch())
