"""The solvers beside the alternatives: `python -m benchmarks.solvers`, from the root of the repository."""
