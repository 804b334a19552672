"""What installs the suite agrees with itself: pyproject, lock files, conda file, Dockerfile, CI.

What is true only where the lock files were installed has a marker of its own, ``lock``: elsewhere, on another Python or
with newer libraries, the suite may be fine and these tests would say that it is not.
"""

import re
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]


def pins(name):
    lines = (line.strip() for line in (ROOT / name).read_text().splitlines())
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


LOCK, PEERS = pins("requirements.lock"), pins("requirements-peers.lock")


def wanted():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    yield from project["dependencies"]
    for extra in project["optional-dependencies"].values():
        yield from extra


@pytest.mark.parametrize("line", list(wanted()))
def test_every_dependency_is_pinned_within_its_range(line):
    requirement = Requirement(line)
    version = {**LOCK, **PEERS}[re.sub(r"[-_.]+", "-", requirement.name).lower()]
    assert requirement.specifier.contains(version)


@pytest.mark.lock
def test_what_runs_here_is_what_is_pinned():
    installed = {name: distribution(name).version.split("+")[0] for name in {**LOCK, **PEERS}}
    assert installed == {**LOCK, **PEERS}


@pytest.mark.lock
def test_pins_admit_every_python_3_11():
    """Debian's Python is 3.11.2: a pin that asks for a later patch release cannot be installed there."""
    too_new = []
    for name in {**LOCK, **PEERS}:
        needs = distribution(name).metadata.get("Requires-Python")
        if needs and not SpecifierSet(needs).contains("3.11.0"):
            too_new.append(f"{name} {needs}")
    assert too_new == []


def test_conda_file_is_a_thin_shell_around_the_lock():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert "python=3.11" in dependencies
    assert {"pip": ["--requirement requirements.lock", "--editable ."]} in dependencies
    assert len(dependencies) == 3


def test_dockerfile_takes_the_lock_a_numeric_user_and_any_base():
    text = (ROOT / "Dockerfile").read_text()
    assert text.index("ARG BASE_IMAGE") < text.index("FROM ${BASE_IMAGE}")
    assert "requirements.lock" in text
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)
    assert "# syntax=" not in text
    assert "index-url" not in text


def test_ci_runs_the_readmes_test_command_and_what_that_leaves_out():
    commands = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make test", "make lint", "make test-packaging", "make test-smoke"} <= set(commands)
    assert "\nmake test\n" in (ROOT / "README.md").read_text()


def test_every_marker_that_the_default_leaves_out_has_its_make_target():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    left_out = re.findall(r"not (\w+)", options["addopts"])
    assert left_out == [marker.split(":")[0] for marker in options["markers"]]
    for marker in left_out:
        assert re.search(rf"^\t.* -m pytest .*-m {marker} ", (ROOT / "Makefile").read_text(), re.MULTILINE)
