"""The papers' own experiments, with this project's optimizers."""
