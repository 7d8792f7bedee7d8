"""What the library costs, beside plain PyTorch that computes the same: `python -m benchmarks --help`."""
