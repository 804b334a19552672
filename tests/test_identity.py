"""The digest of code: an operator counts, words do not, and only what is imported can count."""

import shutil
from pathlib import Path

import pytest

import replicate
from replicate import identity
from replicate.runs import jobs

ROOT = Path(replicate.__file__).parent
TASK = "replicate.rl.tasks.label_copying"


@pytest.fixture
def tree(tmp_path):
    """A copy of the package's sources."""
    return shutil.copytree(ROOT, tmp_path / "replicate", ignore=shutil.ignore_patterns("__pycache__"))


def digests(tree):
    texts = identity.sources(tree)
    return {e: identity.digest_of([jobs.MODULES[e].__name__, TASK], texts) for e in jobs.EXPERIMENTS} | {
        "ladder": identity.digest_of(["replicate.ladder.pretrain"], texts)
    }


def changed(tree, path, old, new):
    """The experiments whose digest changes when ``old`` in that file becomes ``new``."""
    before = digests(tree)
    file = tree / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    after = digests(tree)
    file.write_text(text)
    return {name for name in before if before[name] != after[name]}


def test_one_operator_in_impact_leaves_rl_and_the_ladder_alone(tree):
    of_impact = {"measure", "forecast"}  # one package
    assert changed(tree, "impact/measured.py", "empirical - pathwise", "empirical + pathwise") == of_impact
    assert changed(tree, "impact/headrooms.py", "p * (1 - p)", "p * (2 - p)") == of_impact


def test_one_number_in_the_trainer_concerns_what_takes_its_gradients(tree):
    """A measurement takes |grad J|^2 from the module that forecasts with the trainer's batches."""
    assert changed(tree, "rl/trainer.py", "> config.clip", "< config.clip") == {"rl", "forecast", "measure"}


def test_the_training_of_the_ladder_concerns_the_ladder(tree):
    assert changed(tree, "ladder/pretrain.py", "(0.9, 0.95)", "(0.9, 0.96)") == {"ladder"}
    assert changed(tree, "ladder/corpus.py", "_SUCCESSORS = 6", "_SUCCESSORS = 7") == {"ladder"}


def test_what_all_import_concerns_all(tree):
    assert changed(tree, "rl/tasks/label_copying.py", "import torch\n", "import torch\n\nX = 1\n") == {
        "measure",
        "rl",
        "forecast",
        "ladder",
    }
    assert changed(tree, "__init__.py", "import warnings\n", "import warnings\n\nX = 1\n") == {
        "measure",
        "rl",
        "forecast",
        "ladder",
    }


def test_words_and_layout_concern_nobody(tree):
    for path in ("impact/measured.py", "rl/trainer.py", "ladder/corpus.py", "runs/measurement.py"):
        file = tree / path
        before = digests(tree)
        text = file.read_text()
        opening = text.index('"""')
        file.write_text(
            f"# A remark.\n\n{text[:opening]}" + '"""Other words. ' + text[opening + 3 :] + "\n\n# The end.\n"
        )
        assert digests(tree) == before


def test_what_no_job_imports_concerns_nobody(tree):
    for path in (
        "impact/scores.py",
        "impact/choice.py",
        "runs/params.py",
        "runs/sweep.py",
        "runs/tables.py",
        "report/claims.py",
        "cli/program.py",
        "theory/rollout.py",
    ):
        assert changed(tree, path, "\n\n", "\n\nX = 1\n\n") == set()


def reach(**texts):
    texts = {
        "replicate" if name == "_" else f"replicate.{name.replace('__', '.')}": t for name, t in texts.items()
    }
    return identity.reachable("replicate.a", {"replicate": "", **texts}) - {"replicate", "replicate.a"}


def test_imports_of_every_form_are_followed():
    others = {"p": "", "p__b": "", "c": ""}
    b = {"replicate.p", "replicate.p.b"}
    assert reach(a="import replicate.p.b", **others) == b
    assert reach(a="from replicate.p import b", **others) == b
    assert reach(a="from replicate.p.b import x", **others) == b
    assert reach(a="from .p import b", **others) == b
    assert reach(a="from . import c", **others) == {"replicate.c"}
    assert reach(a="def f():\n    from replicate import c", **others) == {"replicate.c"}
    assert reach(
        a="from replicate.p import b", **{**others, "p": "from .b import x", "p__b": "from .. import c"}
    ) == b | {"replicate.c"}
    assert reach(a="import torch", **others) == set()


def test_imports_for_the_type_checker_are_not():
    text = "if TYPE_CHECKING:\n    from replicate import c\nelse:\n    from replicate import d"
    assert reach(a=text, c="", d="") == {"replicate.d"}


def test_a_module_of_somebody_else_is_refused():
    with pytest.raises(ValueError, match="numpy"):
        identity.digest("numpy")


def test_a_process_keeps_the_digest_of_the_code_it_runs(monkeypatch):
    """An editor that changes a file must not make old code pass for the new one."""
    before = identity.digest("replicate.impact")
    monkeypatch.setattr(Path, "read_text", lambda *_: "changed = 1\n")
    identity._digest.cache_clear()
    assert identity.digest("replicate.impact") == before
