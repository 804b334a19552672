"""Parameters: one schema = the notebooks' parameter cells = the keys of the YAML files; everything else is refused."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

from replicate.runs import params
from replicate.runs.notebooks import schema_of, start
from replicate.runs.params import ScaleParameters

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


def parameter_cell(path):
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1, f"{path.name}: expected exactly one cell tagged parameters"
    namespace = {}
    exec(cells[0].source, namespace)  # plain literals of our own notebooks
    return {name: value for name, value in namespace.items() if not name.startswith("_")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_parameters_are_the_schema_with_its_defaults(path):
    schema = schema_of(path.stem)
    assert parameter_cell(path) == schema().model_dump()


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_yaml_files_have_every_key_and_pass(path):
    assert set(yaml.safe_load(path.read_text())) == set(ScaleParameters.model_fields)
    assert f"runs/{path.stem}" == params.load(path).RUN_DIR


def test_the_small_regime_is_the_default():
    assert params.load(ROOT / "params" / "smoke.yaml") == ScaleParameters()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GRUOP_SIZE: 8", "unknown parameter GRUOP_SIZE"),
        ("LEARNING_RATE: 1e-5", r"parameter LEARNING_RATE: .* got '1e-5'"),
        ("GROUP_SIZE: eight", "parameter GROUP_SIZE"),
        ("GROUP_SIZE: 8.0", "parameter GROUP_SIZE"),
        ("GROUP_SIZE: true", "parameter GROUP_SIZE"),
        ("GROUP_SIZE: 1", "parameter GROUP_SIZE"),
        ("RL_SEEDS: []", "parameter RL_SEEDS"),
        ("RL_SEEDS: [1, 1]", "RL_SEEDS must be distinct"),
        ("BUDGETS: [0, 5]", "BUDGETS"),
        ("TINY_EVERY: 7", "TINY_STEPS must be a multiple"),
        ("TINY_RECORDS: 0.9", "TINY_RECORDS"),
        ("DTYPE: float16", "parameter DTYPE"),
        ("- a list", "flat mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        params.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "none.yaml"))):
        params.load(tmp_path / "none.yaml")


def test_overrides_win_and_are_checked(tmp_path):
    path = ROOT / "params" / "smoke.yaml"
    assert params.load(path, {"GROUP_SIZE": 4}).GROUP_SIZE == 4
    with pytest.raises(ValueError, match="NOPE"):
        params.load(path, {"NOPE": 1})


def test_a_stray_name_beside_the_parameters_stops_a_notebook():
    """Papermill puts a mistyped -p into the namespace and only warns."""
    namespace = {**ScaleParameters().model_dump(), "In": [], "_i": "", "exit": object}
    assert start("11_rl_response", namespace).params == ScaleParameters()
    for stray in ("GRUOP_SIZE", "group_size"):
        with pytest.raises(ValueError, match=stray):
            start("11_rl_response", {**namespace, stray: 8})
