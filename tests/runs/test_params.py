"""Parameters: one schema = the notebooks' parameter cells = the keys of the YAML files; everything else is refused."""

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate.report.ledger.questions import FOLDER, ledger
from replicate.rl.tasks.label_copying import LABELS
from replicate.runs import parameter_files, params, preflight
from replicate.runs.closeup import ladder_of
from replicate.runs.notebook import start
from replicate.runs.parameter_files import schema_of
from replicate.runs.params import SECTIONS, ScaleParameters
from replicate.settings.grpo import GRPO
from replicate.settings.tiny_ladder import TinyLadder

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
# A study file has its ladders besides: tests/runs/test_study.py, tests/runs/test_cells.py.
FILES = sorted(p for p in (ROOT / "params").glob("*.yaml") if "\nLADDERS:" not in p.read_text())


def of_papermill(name):
    """A module of Papermill; where there is none the test that asks is skipped, and the core's tests know of it."""
    return pytest.importorskip(f"papermill.{name}")


def parameter_cell(path):
    nbformat = pytest.importorskip("nbformat")
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1, f"{path.name}: expected exactly one cell tagged parameters"
    namespace = {}
    exec(cells[0].source, namespace)  # plain literals of our own notebooks
    return {name: value for name, value in namespace.items() if not name.startswith("_")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_parameters_are_the_schema_with_its_defaults(path):
    schema = schema_of(path.stem)
    knobs = {name: knob.default for name, knob in ledger(path.stem).knobs.items()}
    assert parameter_cell(path) == schema().model_dump() | knobs


def parameterized(path, values):
    """The namespace of a notebook when its start is called: its parameter cell, then the cell that Papermill adds."""
    opened = of_papermill("iorw").load_notebook_node(str(path))
    book = of_papermill("parameterize").parameterize_notebook(opened, values)
    namespace = {}
    for cell in book.cells:
        if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
            exec(cell.source, namespace)  # literals
    return namespace


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_every_flat_file_serves_every_notebook(home, path, file, monkeypatch):
    """As ``papermill notebook.ipynb out.ipynb -f file.yaml`` does it, up to and with the call of start."""
    # What the file fits is asked here, not which devices this machine has.
    values = {**of_papermill("iorw").read_yaml_file(str(file)), "DEVICE": "cpu", "TINY_DEVICE": "cpu"}
    if values["LADDER"].startswith("hub:"):  # nor which lock files there are
        for asks in ("_ladder", "_rungs"):
            monkeypatch.setattr(preflight, asks, lambda _: iter(()))
    found = start(path.stem, parameterized(path, values))
    assert found.params.model_dump() == {name: values[name] for name in schema_of(path.stem).model_fields}
    assert found.folder == home / values["RUN_DIR"]


def test_papermill_hands_over_a_list_on_its_command_line_as_text(home):
    """``-p BUDGETS "[5]"``; a number with an exponent it does understand."""
    (path,) = (ROOT / "notebooks").glob("11_*.ipynb")
    resolve = of_papermill("cli")._resolve_type
    values = {"BUDGETS": resolve("[5]"), "SIGMA": resolve("1e-2")}
    assert values == {"BUDGETS": "[5]", "SIGMA": 0.01}
    found = start(path.stem, parameterized(path, values)).params
    assert (found.BUDGETS, found.SIGMA) == ([5], 0.01)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_keeps_its_defaults_and_refuses_what_is_wrong_for_any(path):
    schema = schema_of(path.stem)
    assert set(schema.model_fields) <= set(ScaleParameters.model_fields)
    assert schema.parse({}, where="x") == schema()
    for values, message in [
        ({"GRUOP_SIZE": 8}, "unknown parameter GRUOP_SIZE, the nearest known: GROUP_SIZE"),
        ({"group_size": 8}, "unknown parameter group_size, the nearest known: GROUP_SIZE"),
        ({"GROUP_SIZE": "8"}, "GROUP_SIZE.*got '8'; write 8"),
        ({"TINY_EVERY": 7}, "TINY_STEPS must be a multiple"),
    ]:
        with pytest.raises(ValueError, match=f"^{path.stem}: .*{message}"):
            schema.parse(values, where=path.stem)


def test_many_complaints_are_counted_not_listed():
    with pytest.raises(ValueError, match=r"unknown parameter B.*; and 2 more$"):
        ScaleParameters.parse(dict.fromkeys("ABCDE", 1), where="x")
    with pytest.raises(ValueError, match=r"^x: unknown parameter Y") as error:
        ScaleParameters.parse({"Y" * 10**6: "z" * 10**6}, where="x")
    assert len(str(error.value)) <= 300
    with pytest.raises(ValueError, match=r"^\.\.\.w+: unknown parameter A, ") as error:
        ScaleParameters.parse({"A": 1}, where="w" * 1000)
    assert len(str(error.value)) <= 300
    many = {f"{name}": "z" * 100 for name in ScaleParameters.model_fields}
    with pytest.raises(ValueError, match=r"\.\.\.$") as error:
        ScaleParameters.parse(many, where="w" * 1000)
    assert len(str(error.value)) == 300


def test_a_list_that_papermill_hands_over_as_text_is_read():
    parse = schema_of("11_rl_response").parse
    assert parse({"BUDGETS": "[5, 20]"}, where="x").BUDGETS == [5, 20]
    for text in ("[5", "5, 20", "['5']", "[1_0]", "[5.0]"):
        with pytest.raises(ValueError, match="parameter BUDGETS"):
            parse({"BUDGETS": text}, where="x")


def test_as_many_labels_as_the_task_has_and_no_more():
    assert len(LABELS) == ScaleParameters(LABELS=len(LABELS)).LABELS
    with pytest.raises(ValueError, match=f"LABELS.*less than or equal to {len(LABELS)}, got 17"):
        ScaleParameters.parse({"LABELS": len(LABELS) + 1}, where="x")


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_yaml_files_have_every_key_in_order_and_pass(file):
    assert list(yaml.safe_load(file.read_text())) == list(ScaleParameters.model_fields)
    assert f"runs/{file.stem}" == params.load(file).RUN_DIR


def test_generated_files_are_current_and_a_change_is_seen(tmp_path):
    """smoke.yaml and every parameter cell are what the sections say; written anew they change nothing else."""
    pytest.importorskip("nbformat")
    assert parameter_files.stale(ROOT) == []
    suite = tmp_path / "suite"
    for name in ("params", "notebooks"):
        shutil.copytree(ROOT / name, suite / name)
    (cell,) = (suite / "notebooks").glob("11_*.ipynb")
    original, file = cell.read_text(), suite / "params" / "smoke.yaml"
    cell.write_text(original.replace("GROUP_SIZE = 8", "GROUP_SIZE = 9"))
    file.unlink()
    assert set(parameter_files.stale(suite)) == {cell, file}
    parameter_files.stale(suite, write=True)
    assert cell.read_text() == original
    assert parameter_files.stale(suite) == []


def test_nothing_is_generated_outside_a_suite(tmp_path):
    with pytest.raises(ValueError, match=r"no params and no notebooks; set REPLICATE_HOME"):
        parameter_files.stale(tmp_path, write=True)
    assert not list(tmp_path.iterdir())


def test_the_small_ladder_is_trained_where_the_parameters_say(home, ladder, monkeypatch):
    """Notebooks 05 to 08 train one, too."""
    asked = []

    def train(spec, folder, **_):
        asked.append((spec.seed, folder))
        return ladder

    monkeypatch.setattr("replicate.ladder.pretrain.train", train)
    assert ladder_of(schema_of("05_x")(SEED=3, LADDER_DIR="here")) is ladder
    assert asked == [(3, home / "here")]


def test_a_shared_parameter_has_one_declaration():
    """SEED and LABELS configure two sections each; their types and defaults must not part."""
    seen = {}
    for section in SECTIONS:
        for name, info in section.model_fields.items():
            said = (info.annotation, info.default, repr(info.metadata))
            assert seen.setdefault(section.flat_name(name), said) == said
    assert list(seen) == list(ScaleParameters.model_fields)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_a_configuration_of_its_own(section):
    """Its defaults are those of the flat parameters, and it refuses by its fields' own names."""
    assert ScaleParameters().section(section) == section()
    with pytest.raises(ValueError, match=r"^nonsense: "):
        section(nonsense=1)


def test_a_section_complains_of_its_own_fields():
    with pytest.raises(ValueError, match=r"^steps must be a multiple of every \(7\), got 300$"):
        TinyLadder(every=7)
    with pytest.raises(ValueError, match=r"^group_size: .*greater than or equal to 2, got 1$"):
        GRPO(group_size=1)


def test_the_small_regime_is_the_default():
    assert params.load(ROOT / "params" / "smoke.yaml") == ScaleParameters()


FLOATS = ("LEARNING_RATE", "SIGMA", "CLIP", "KL_COEF", "MAX_GRAD_NORM", "TINY_LEARNING_RATE", "TINY_RECORDS")
UNENDING = (".inf", ".nan")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GRUOP_SIZE: 8", "unknown parameter GRUOP_SIZE, the nearest known: GROUP_SIZE"),
        ("xyz: 8", "unknown parameter xyz, `replicate params` lists all"),
        ("LEARNING_RATE: 1e-5", r"parameter LEARNING_RATE: .* got '1e-5'; write 1.0e-5$"),
        ("LEARNING_RATE: 3.2e7", r"parameter LEARNING_RATE: .* got '3.2e7'; write 32000000.0$"),
        ("CLIP: -.5", r"parameter CLIP: .* got '-.5'; write -0.5$"),
        *(
            (f"{key}: {value}", f"parameter {key}: .*finite number, got")
            for key in FLOATS
            for value in UNENDING
        ),
        ("GROUP_SIZE: eight", "parameter GROUP_SIZE.*got 'eight'"),
        ("GROUP_SIZE: 8.0", "parameter GROUP_SIZE.*got 8.0; write 8"),
        ("GROUP_SIZE: 1e3", "parameter GROUP_SIZE.*got '1e3'; write 1000"),
        ("GROUP_SIZE: '8'", "parameter GROUP_SIZE.*got '8'; write 8"),
        ("GROUP_SIZE: true", "parameter GROUP_SIZE.*got True"),
        ("GROUP_SIZE: 1", "parameter GROUP_SIZE.*greater than or equal to 2, got 1"),
        ("POOL_PROMPTS: 1000001", "parameter POOL_PROMPTS.*less than or equal to 1000000"),
        ("SEED: 4294967296", "parameter SEED.*less than or equal to 4294967295"),
        ("RL_SEEDS: [4294967296]", "parameter RL_SEEDS: expected distinct numbers from 0 to 4294967295, got"),
        ("RL_SEEDS: [-1]", "parameter RL_SEEDS: expected distinct numbers from 0"),
        ("BUDGETS: 5", r"parameter BUDGETS.*got 5; write \[5\]"),
        ("STACK_SEEDS: 1", "parameter STACK_SEEDS.*got 1; write true or false"),
        ("RUN_DIR: 5", "parameter RUN_DIR.*got 5; put text in quotes"),
        ("RUN_DIR:", "parameter RUN_DIR.*got None"),
        ("RUN_DIR: ''", "parameter RUN_DIR.*at least 1 character"),
        ("LADDER: ''", "parameter LADDER.*at least 1 character"),
        ("RUN_DIR: ' '", "parameter RUN_DIR.*outer blanks"),
        ('RUN_DIR: "a\\0b"', r"parameter RUN_DIR.*control characters.*got 'a\\x00b'"),
        ("RL_SEEDS: []", "parameter RL_SEEDS"),
        ("RL_SEEDS: [1, 1]", "parameter RL_SEEDS: expected distinct"),
        ("BUDGETS: [0, 5]", "BUDGETS"),
        ("TINY_EVERY: 7", "TINY_STEPS must be a multiple"),
        (
            "TINY_RECORDS: 0.9",
            "TINY_RECORDS, TINY_LABEL_DOCUMENTS and TINY_SEQUENCE_DOCUMENTS .* got 0.9, 0.5 and 0.0",
        ),
        ("TINY_HEADS: 3", r"TINY_HIDDEN must be a multiple of 2 x TINY_HEADS \(6\), got 64"),
        ("TASK: nothing", "TASK must be one of label_copying, sequence_copying, got 'nothing'"),
        (
            "ANSWER_TOKENS: 2",
            "ANSWER_TOKENS must be 1 for label_copying, got 2; set TASK to sequence_copying",
        ),
        ("ANSWER_REWARD: some", "parameter ANSWER_REWARD: Input should be 'all' or 'each', got 'some'"),
        (
            "MEASURE_LAYERS: [3]",
            r"MEASURE_LAYERS must be 0 to 2 or -1, .* \(the model has 2 blocks\), got \[3\]",
        ),
        ("MEASURE_LAYERS: [0, 1]", r"MEASURE_LAYERS must contain -1, .*, got \[0, 1\]"),
        ("MEASURE_LAYERS: -1", r"parameter MEASURE_LAYERS.*got -1; write \[-1\]"),
        ("MEASURE_LAYERS: [-2]", "parameter MEASURE_LAYERS: expected distinct numbers from -1"),
        ("TINY_EVERY: 7\nMEASURE_LAYERS: [9]", "TINY_STEPS .*; MEASURE_LAYERS"),
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
    assert str(path)[-100:] in str(error.value)
    assert "\n" not in str(error.value)


def test_what_only_the_tiny_ladder_cannot_do_is_no_fault_of_another():
    values = {"MEASURE_LAYERS": [16], "TINY_HEADS": 3}
    assert ScaleParameters(LADDER="elsewhere", **values).TINY_HEADS == 3
    assert ScaleParameters(MEASURE_LAYERS=[-1, 2]).TINY_CONTEXT == 32
    with pytest.raises(ValueError, match=r"TINY_HIDDEN.*MEASURE_LAYERS"):
        ScaleParameters(**values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read .No such file or directory.; expected a file such as params/cpu.yaml"),
        ("folder", "cannot be read .Is a directory."),
        (b"SEED: \xff", "not UTF-8 text"),
        (b"SEED: 1\0", "not valid YAML .unacceptable character"),
        (b"#" * 10**6, "too long for a parameter file"),
        (b"", "flat mapping of parameters .KEY: value., got None"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "p.yaml"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path)[-100:])}: .*{message}"):
        params.load(path)


def test_an_endless_file_is_not_read_to_its_end():
    with pytest.raises(ValueError, match="/dev/zero"):
        params.load("/dev/zero")


def test_overrides_win_and_are_checked():
    path = ROOT / "params" / "smoke.yaml"
    assert params.load(path, {"GROUP_SIZE": 4}).GROUP_SIZE == 4
    with pytest.raises(ValueError, match=r"smoke\.yaml with -p: unknown parameter NOPE"):
        params.load(path, {"NOPE": 1})


def test_overrides_are_read_as_in_a_file():
    items = ["SEED=3", "BUDGETS=[5, 10]", "RUN_DIR=runs/a=b", "LADDER=hub:allenai/x", "CLIP=1.0e-1", "SEED=4"]
    assert params.overrides(items) == {
        "SEED": 4,
        "BUDGETS": [5, 10],
        "RUN_DIR": "runs/a=b",
        "LADDER": "hub:allenai/x",
        "CLIP": 0.1,
    }


@pytest.mark.parametrize(
    "item", ["SEED", "=3", " =3", "", "SEED=[", "SEED=a: b: c", "RUN_DIR=@x", "SEED=010", "A=\0"]
)
def test_an_override_that_is_none_is_named_in_one_line(item):
    with pytest.raises(ValueError, match=f"^-p {re.escape(repr(item))}: ") as error:
        params.overrides([item])
    assert "\n" not in str(error.value)
    if "@" in item:
        assert "quote what is text: KEY='\"text\"'" in str(error.value)


def test_a_stray_name_beside_the_parameters_stops_a_notebook(home):
    """Papermill puts a mistyped -p into the namespace and only warns."""
    ipython = {"In": [], "_i": "", "exit": object, "PAPERMILL_INPUT_PATH": "x.ipynb"}
    namespace = {**ScaleParameters().model_dump(), **ipython}
    assert start("11_rl_response", namespace).params == ScaleParameters()
    for stray in ("GRUOP_SIZE", "group_size"):
        with pytest.raises(ValueError, match=stray):
            start("11_rl_response", {**namespace, stray: 8})


def test_a_notebook_is_refused_before_its_work_what_a_run_is_refused(home):
    for notebook in ("01_gradient_estimators", "11_rl_response"):
        (home / "file").touch()
        with pytest.raises(ValueError, match=f"^{notebook}: RUN_DIR: cannot write to 'file/run'"):
            start(notebook, {"RUN_DIR": "file/run"})
    with pytest.raises(ValueError, match=r"^11_rl_response: DEVICE: 'cudaa'"):
        start("11_rl_response", {"DEVICE": "cudaa"})
    assert (
        start("01_gradient_estimators", {"DEVICE": "cudaa"}).params.SEED == 0
    )  # not its own: only its type counts
    assert (
        start("00_start_here", {"RUN_DIR": "file/run"}).folder == home / "file" / "run"
    )  # reads, never writes


def test_a_notebook_refuses_answers_that_it_could_not_read(home):
    """From 09 on all read J off one token; those before ask label copying, whatever the file's task is."""
    values = {"TASK": "sequence_copying", "ANSWER_TOKENS": 2}
    with pytest.raises(
        ValueError, match=r"^11_rl_response: TASK: expected answers of one token .* 2 tokens; set"
    ):
        start("11_rl_response", values)
    assert start("11_rl_response", values | {"ANSWER_TOKENS": 1}).params.TASK == "sequence_copying"
    assert not hasattr(start("05_empirical_costates", values).params, "TASK")


def test_checking_a_file_imports_nothing_heavy(tmp_path):
    """Else a mistyped file name is reported only after torch, transformers and pandas have been imported."""
    code = """
import sys
from replicate import cli
from replicate.runs import params
try:
    params.load(sys.argv[1], params.overrides(["SEED=x"]))
except ValueError:
    print(sorted({"torch", "transformers", "pandas", "numpy", "scipy", "matplotlib"} & set(sys.modules)))
"""
    file = ROOT / "params" / "smoke.yaml"
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# Fuzz: whatever is typed, it is taken by the schema or refused in one readable line.

SPECIAL = "[]{}:,-?!&*#|>@%'\"`~ \n\t=<0123456789.eE_xo+aTrueNl\0\ud800\u2028é"
TRAPS = [
        *("010", "0o10", "0x1F", "0b11", "1_000", "1:30", "190:20:30.15", "1e-5", "1.0e-5", "1e400", "9" * 5000),
        *(".inf", "-.inf", ".nan", "-0", "+5", ".5", "5.", "true", "yes", "~", "null", "''", '"', "2026-01-01", "@x"),
        *("[" * 1000, "[1, 2", "[5]", '"[5]"', "{a: 1}", "&a [*a]", "*a", "!!int x", "!!python/name:os.system", "<<"),
        *("x" * 10000, "a: b: c", "|", ">-", "tiny", "cpu", "mean", "[1, 1]", "[-1]", "-1", "0", "1", "64", "0.5"),
    ]  # fmt: skip
SCALARS = st.one_of(
    st.sampled_from(TRAPS),
    st.text(alphabet=SPECIAL, max_size=12),
    st.integers().map(str),
    st.floats().map(repr),
)
KEYS = st.one_of(
    st.sampled_from(sorted(ScaleParameters.model_fields)),
    st.sampled_from(
        ["1", "null", "~", "2026-01-01", "true", "1.5", "[1]", "? {a: b}", "group_size", "x" * 5000, "<<"]
    ),
    st.text(alphabet=SPECIAL, max_size=6),
)
LINES = st.lists(st.tuples(KEYS, SCALARS).map(": ".join), max_size=4).map("\n".join)
TEXTS = st.one_of(LINES, LINES, st.text(alphabet=SPECIAL, max_size=60), st.text(max_size=20))
FUZZ = settings(max_examples=300, deadline=None, database=None, derandomize=True)


def accepted_or_refused_in_one_line(call):
    refusal = None
    try:
        found = call()
    except ValueError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.isprintable()
        assert len(refusal) <= 400
    else:
        assert all(math.isfinite(v) for v in found.model_dump().values() if isinstance(v, float))
        assert ScaleParameters.parse(found.model_dump(), where="again") == found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "p.yaml"


@pytest.mark.parametrize("key", ScaleParameters.model_fields)
def test_every_parameter_with_every_trap(scratch, key):
    for value in TRAPS:
        scratch.write_text(f"{key}: {value}")
        accepted_or_refused_in_one_line(lambda: params.load(scratch))


@FUZZ
@given(content=st.one_of(TEXTS.map(lambda t: t.encode("utf-8", "surrogatepass")), st.binary(max_size=40)))
def test_any_file_is_taken_or_refused_in_one_line(scratch, content):
    scratch.write_bytes(content)
    accepted_or_refused_in_one_line(lambda: params.load(scratch))


@FUZZ
@given(
    items=st.lists(
        st.one_of(st.tuples(KEYS, SCALARS).map("=".join), st.text(SPECIAL, max_size=12)), max_size=3
    )
)
def test_any_overrides_are_taken_or_refused_in_one_line(items):
    file = ROOT / "params" / "smoke.yaml"
    accepted_or_refused_in_one_line(lambda: params.load(file, params.overrides(items)))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**4000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@FUZZ
@given(values=st.dictionaries(KEYS, VALUES, max_size=3))
def test_any_python_values_are_taken_or_refused_in_one_line(values):
    """What a notebook's namespace may hold."""
    accepted_or_refused_in_one_line(lambda: ScaleParameters.parse(values, where="notebook"))


def test_what_a_reader_may_move_is_called_like_no_parameter():
    """One flat file serves every notebook, and what it sets must not reach a toy under the same name."""
    for path in FOLDER.glob("[0-9]*.toml"):
        assert set(ledger(path.stem).knobs) & set(ScaleParameters.model_fields) == set(), path.stem
