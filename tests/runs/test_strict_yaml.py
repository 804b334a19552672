"""Strict YAML: a value that is taken is the one that Papermill reads from the same text; traps are refused by line."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from replicate.runs.strict_yaml import read, shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *(
            (f"a: 1\nb: {n}", f"line 2: {n} is no plain number; write")
            for n in ("010", "0x1F", "0b11", "1_000", "1:30")
        ),
        *(
            (f"b: {n}", f"line 1: {n} is no plain number; write")
            for n in ("190:20:30.15", "1_0.5", "00", "0_0", "-012")
        ),
        ("a: " + "9" * 5000, "line 1: 999.* write at most 18 digits"),
        ("a: 1\nb: 2\na: 3", "line 3: a stands twice, first in line 1; keep one"),
        ("a: {b: 1, b: 2}", "line 1: b stands twice"),
        ("a: 1\n1: 2", "line 2: expected a parameter's name before the colon, got 1"),
        ("null: 2", "expected a parameter's name before the colon, got null"),
        ("true: 2", "expected a parameter's name before the colon, got true"),
        ("[1]: 2", "expected a parameter's name before the colon, got a sequence"),
        ("? {a: 1}\n: 2", "expected a parameter's name before the colon, got a mapping"),
        ("<<: {a: 1}", "expected a parameter's name before the colon, got <<"),
        ("[" * 1000, "nested too deeply"),
        ("{a: " * 1000, "nested too deeply"),
        ("[", "not valid YAML .line 1: expected the node content"),
        ("a: b: c", "not valid YAML .line 1: mapping values are not allowed here"),
        ("@x", "not valid YAML .line 1: found character '@'"),
        ("a\0", "not valid YAML .unacceptable character #x0000"),
        ("--- a\n--- b", "not valid YAML .line 2: but found another document"),
        ("!!python/object:os.x {}", "line 1: could not determine a constructor"),
        ("!!timestamp x", "line 1: could not determine a constructor"),
        ("!!bool maybe", "line 1: expected true or false, got maybe"),
        ("!!int ''", "line 1: nothing is no plain number"),
        ("!!float abc", "line 1: abc is no plain number"),
    ],
)
def test_traps_are_refused_with_their_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        read(text)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["2026-01-01", "1e-5", "1.0e5", "0o10", "08", "-.5", "12e03"])
def test_text_that_looks_like_something_else_stays_text(text):
    assert read(text) == text


NUMBERS = st.text("0123456789+-._:eExob", min_size=1, max_size=6)
PLAIN = st.one_of(
    NUMBERS, st.sampled_from(["yes", "Off", "~", ".inf", "-.Inf", "2026-01-01"]), st.text(max_size=6)
)


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(text=st.one_of(PLAIN, st.lists(PLAIN).map(lambda parts: f"a: [{', '.join(parts)}]")))
def test_what_is_taken_is_what_papermill_reads(text):
    iorw = pytest.importorskip("papermill.iorw")
    try:
        value = read(text)
    except ValueError:
        return
    assert repr(value) == repr(yaml.load(text, Loader=iorw.NoDatesSafeLoader))


def test_values_are_shown_on_one_line_and_short():
    assert shown([5, "a\nb"]) == "[5, 'a\\nb']"
    assert len(shown("x" * 10**6)) == len(shown({"k": ["y" * 100] * 100})) == 60
    lists = read("a: &a [1,2]\nb: &b [*a,*a]\nc: [*b,*b]\nd: &d [*d]")
    assert len(shown(lists)) <= 60
