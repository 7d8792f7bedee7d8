"""What the library costs, beside plain PyTorch that computes the same: `python -m benchmarks --help`.

Two commands have pages of their own: `python -m benchmarks.generators` and `python -m benchmarks.objectives`.
"""
