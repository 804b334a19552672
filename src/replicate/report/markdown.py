"""Tables in Markdown."""


def head(*names: str, numbers: int = 0) -> str:
    """The two lines above a table's rows; the last ``numbers`` columns are set flush right."""
    plain = len(names) - numbers
    return row(*names) + "\n|" + "---|" * plain + "--:|" * numbers + "\n"


def row(*cells: str) -> str:
    """One row."""
    # A bar inside a cell, as in |z|, would end it.
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
