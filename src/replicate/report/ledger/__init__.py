"""What the notebooks ask: one TOML file a notebook with the rows of its verdict table and what a reader may move.

A row is declared before it is measured: whose claim, which number, which criterion. The notebook then says
``verdict("key", value)``. ``statements.toml`` lists the statements of the paper that the rows judge.
"""
