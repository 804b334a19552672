"""A published study of cells, read back from its folder: the tables, and what the study says of itself."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def read(
    folder: Path, names: Sequence[str], *, what: str, parameters: str
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """The tables ``names`` of a published study of ``what``, and its own description; ``parameters`` is the file that
    it was run from.

    Raises ``ValueError`` with one line if they are not there, or if gains and cells do not belong to one another.
    """
    try:
        said = json.loads((folder / "study.json").read_text())
        found = {name: widened(pd.read_parquet(folder / f"{name}.parquet")) for name in names}
    except OSError as error:
        how = f"run `replicate study -f {parameters} --publish {folder}`"
        raise ValueError(
            f"{folder}: no published study of {what} ({error.strerror or error}); {how}"
        ) from None
    if unknown := set(found["gains"].cell) ^ set(found["cells"].cell):
        raise ValueError(f"{folder}: expected gains of exactly its cells, got {sorted(unknown)} on one side")
    return found, said


def widened(table: pd.DataFrame) -> pd.DataFrame:
    """float32 as the shortest float64 that rounds to it, so that a setting of 0.1 is 0.1 again."""
    narrow = table.select_dtypes("float32")
    return table.assign(
        **{name: column.map(lambda x: float(str(np.float32(x)))) for name, column in narrow.items()}
    )


def records_made(said: dict[str, Any]) -> tuple[str, str]:
    """When the first and the last record of a study of cells were finished."""
    finished = [time for of in said["cells"].values() for time in of["made"]["finished"]]
    return min(finished), max(finished)
