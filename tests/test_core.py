"""The core's own run: what it does without is written down, and a test that skips unseen fails it."""

import re
from pathlib import Path

import core_plugin as core

ROOT = Path(__file__).parents[1]
OLDER = {"torch", "transformers", "huggingface-hub", "setuptools"}


def pinned(name):
    lines = (ROOT / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_core_has_the_libraries_of_the_suite_but_for_the_oldest_that_it_must_run_with():
    """And none of those that its tests are skipped for; the README and the project name the same versions."""
    ours, whole = core.pins(), pinned("requirements.lock")
    assert {name for name, version in ours.items() if whole[name] != version} == OLDER
    assert not set(core.WITHOUT.values()) & set(ours)
    project = (ROOT / "pyproject.toml").read_text()
    for name in ("torch", "transformers"):
        assert f'"{name}>={ours[name].removesuffix(".0")}"' in project
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"Python 3.12 with torch {ours['torch'][:4]} and transformers {ours['transformers'][:4]}" in readme


def test_what_is_skipped_is_exactly_what_is_listed():
    asked = dict.fromkeys(core.WITHOUT, "could not import it")
    assert core.wrong(asked) == []
    assert core.wrong({**asked, "a.py::test_b": "tired"}) == [
        "a.py::test_b: skipped, but not in tests/core_plugin.py (tired)"
    ]
    assert core.wrong({**asked, "a.py::test_b": "Skipped: strace is not installed"}) == []
    name = asked.popitem()[0]
    assert core.wrong(asked) == [f"{name}: not skipped, but in tests/core_plugin.py"]


def test_what_is_listed_is_there():
    """A test that got another name would be missed by nobody."""
    for name in core.WITHOUT:
        path, _, function = name.partition("::")
        text = (ROOT / "tests" / path).read_text()
        assert not function or re.search(rf"^def {function}\(", text, re.MULTILINE), name


def test_an_environment_with_more_than_the_core_is_refused(monkeypatch):
    monkeypatch.setattr(core, "version", lambda name: "0")
    monkeypatch.setattr(core, "find_spec", lambda name: name == "papermill" or None)
    found = list(core.environment())
    assert "torch: expected 2.11.0, got 0" in found
    assert found[-1] == "papermill: not the core's, but installed"
