"""How far numbers are apart and how sure one can be of it; knows no model and no record."""
