"""One module a notebook: from the table behind a figure to the figure; and the style they share."""
