"""What the library costs beside the alternatives: `python -m benchmarks.run`, from the root of the repository."""
