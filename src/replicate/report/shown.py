"""A small table of numbers under a cell, in the backquotes that nbval passes over."""

import math
from typing import TYPE_CHECKING, Any

from replicate.report import markdown

if TYPE_CHECKING:
    import pandas as pd


class Shown:
    """``frame`` as a Markdown table, its numbers to ``digits`` significant digits; whole numbers and words as is."""

    def __init__(self, frame: "pd.DataFrame", *, digits: int = 3) -> None:
        self.frame, self.digits = frame, digits

    def __repr__(self) -> str:
        """Short, and without digits: nbval compares it between machines."""
        return f"<table of {len(self.frame)} rows>"

    def _repr_markdown_(self) -> str:
        rows = self.frame.itertuples(index=False, name=None)
        body = "\n".join(markdown.row(*(self._cell(x) for x in row)) for row in rows)
        return markdown.head(*map(str, self.frame.columns)) + body

    def _cell(self, x: Any) -> str:
        if not isinstance(x, float):
            return str(x)
        return f"`{x:.{self.digits}g}`" if math.isfinite(x) else "-"
