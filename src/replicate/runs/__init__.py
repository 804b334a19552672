"""How work gets done: parameters, the record store, sweeps over checkpoints and seeds, notebooks."""
