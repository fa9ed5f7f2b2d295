"""The same on a GPU: `python -m benchmarks.gpu`, and with all that needs one, benchmarks/gpu.sh."""
