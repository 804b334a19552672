"""The package is a house of rooms: imports point down, modules are short, tests and figures stand where one looks."""

import ast
import json
import re
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "replicate"
# From the bottom. Modules beside each other in the first row, and `cli` in the last, are no packages.
ROOMS = (
    ("__init__", "kernels", "identity", "files", "threads", "checks", "bisection", "streams", "settings"),
    *(("statistics",), ("theory",), ("models",), ("lm",), ("rl",), ("impact",), ("ladder",), ("report",), ("runs",)),
    ("cli", "__main__"),
)  # fmt: skip
FLOOR = {name: floor for floor, names in enumerate(ROOMS) for name in names}
MODULES = {path.relative_to(SOURCE).with_suffix(""): path for path in sorted(SOURCE.rglob("*.py"))}


def imports(path, tree):
    """Modules of the package that ``path`` imports, as paths below the package; line by line.

    All imports count: those inside functions, which run all the same, and those under TYPE_CHECKING. A type from above
    is knowledge of what is above, whether or not it is there when the program runs.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ("replicate", *path.parent.parts)
            start = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            base = ".".join(filter(None, (start, node.module)))
            found = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name.split(".")[1:]) for name in found if name.split(".")[0] == "replicate")


def room_of(names):
    """The room of a dotted name below the package; a name that the package itself defines is the ground floor's."""
    return names[0] if names and names[0] in FLOOR else "__init__"


def pointing_up(path, text):
    """The imports of the module ``path`` (below the package) that point up, in words."""
    here = path.parts[0]
    for line, names in imports(path, ast.parse(text)):
        if FLOOR[room_of(names)] > FLOOR[here]:
            yield f"{path}.py, line {line}: {here} imports {'.'.join(names)}"


def test_every_module_is_in_a_room():
    assert sorted({path.parts[0] for path in MODULES} - set(FLOOR)) == []


def test_imports_point_down():
    assert list(chain(*(pointing_up(path, file.read_text()) for path, file in MODULES.items()))) == []


@pytest.mark.parametrize(
    "text",
    [
        *("from replicate.runs import store", "import replicate.runs.store", "from replicate import runs"),
        *("from ..runs.store import key_of", "from .. import runs", "from replicate.cli import main"),
        "def f():\n    from replicate.runs import store",
        "if TYPE_CHECKING:\n    from replicate.runs.store import Store",
    ],
)
def test_an_import_that_points_up_is_seen(text):
    """Else the test above would prove nothing."""
    assert len(list(pointing_up(Path("lm/gap"), text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from replicate.theory import toys",
        "from replicate import DISTRIBUTION",
        "from . import spectra",
        "import os",
    ],
)
def test_an_import_that_points_down_or_sideways_is_let_be(text):
    assert list(pointing_up(Path("lm/gap"), text)) == []


def test_no_module_is_longer_than_a_reader_keeps_in_mind():
    lengths = {str(path): len(file.read_text().splitlines()) for path, file in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def packages():
    # The package's own docstring is the map of the house, and longer.
    return [path for path in MODULES if path.name == "__init__" and path.parent != Path()]


@pytest.mark.parametrize("path", packages(), ids=lambda path: str(path.parent))
def test_a_package_says_in_one_sentence_what_belongs_there(path):
    said = ast.get_docstring(ast.parse(MODULES[path].read_text()))
    assert said
    sentence = said.split("\n\n")[0]  # what a module of the package must have may follow
    assert re.findall(r"[.!?](?=\s|$)", sentence) == ["."]
    assert sentence.endswith(".")


def test_every_notebook_that_saves_figures_has_its_module_of_them():
    saving = set()
    for path in (ROOT / "notebooks").glob("[0-9][0-9]*_*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        if any(
            "save_figure(" in line for cell in cells if cell["cell_type"] == "code" for line in cell["source"]
        ):
            saving.add(f"nb{path.name.partition('_')[0]}")
    assert saving
    assert {path.name for path in MODULES if re.fullmatch(r"nb\d+[a-z]?", path.name)} == saving
    assert all(Path("report/figures") / name in MODULES for name in saving)


def test_every_folder_of_tests_is_a_room():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")} - {Path()}
    assert folders
    assert sorted(str(folder) for folder in folders if folder / "__init__" not in MODULES) == []
