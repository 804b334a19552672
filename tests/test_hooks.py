"""The hooks before a commit: a configuration that parses, local hooks only, and entries that exist."""

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from replicate import cli

ROOT = Path(__file__).parents[1]
REPOSITORIES = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
HOOKS = {hook["id"]: hook for repository in REPOSITORIES for hook in repository["hooks"]}


def test_hooks_are_local_and_fetch_nothing():
    assert [repository["repo"] for repository in REPOSITORIES] == ["local"]
    assert {hook["language"] for hook in HOOKS.values()} == {"system"}


def test_what_lint_asks_is_asked_before_a_commit():
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    asked = [line.split("$(BIN)/")[1] for line in lint.splitlines() if "$(BIN)/" in line]
    entries = [hook["entry"] for hook in HOOKS.values()]
    assert asked
    for command in asked:
        words = " ".join(command.split()[:2])
        assert [entry for entry in entries if entry.startswith(f".venv/bin/{words}")], command


@pytest.mark.skipif(find_spec("ruff") is None, reason="no development tools are installed")
@pytest.mark.parametrize("name", HOOKS)
def test_an_entry_is_a_program_of_the_environment_and_scripts_and_commands_that_exist(name):
    """An environment stands in .venv where `make` made it; elsewhere the same program is beside this Python."""
    program, *words = shlex.split(HOOKS[name]["entry"])
    assert program.startswith(".venv/bin/")
    assert (Path(sys.executable).parent / Path(program).name).exists()
    assert all((ROOT / word).is_file() for word in words if word.endswith(".py"))
    if program.endswith("/replicate"):
        known = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
        assert words[0] in known


@pytest.mark.parametrize("name", [name for name, hook in HOOKS.items() if "files" in hook])
def test_what_a_hook_looks_at_is_there(name):
    """A pattern that matches no file of the tree is a hook that never runs."""
    folders = (ROOT / name for name in ("notebooks", "params", "results", "src"))
    paths = [*ROOT.glob("*.md"), *(path for folder in folders for path in folder.rglob("*"))]
    pattern = re.compile(HOOKS[name]["files"])
    assert any(pattern.search(path.relative_to(ROOT).as_posix()) for path in paths)
