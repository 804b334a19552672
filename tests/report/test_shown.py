"""Tables of numbers that strict nbval can compare between machines."""

import re

import pandas as pd

from replicate.report.shown import Shown


def test_measured_numbers_stand_in_backquotes_and_the_rest_as_it_is():
    table = Shown(pd.DataFrame({"a|b": ["x", "y"], "n": [1, 20], "v": [0.123456, float("nan")]}), digits=2)
    assert table._repr_markdown_().splitlines()[2:] == ["| x | 1 | `0.12` |", "| y | 20 | - |"]
    assert table._repr_markdown_().startswith("| a\\|b | n | v |")
    assert not re.search(r"\d\.\d", re.sub(r"`[^`]*`", "", table._repr_markdown_()))
    assert repr(table) == "<table of 2 rows>"
