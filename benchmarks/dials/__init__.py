"""What dials cost and reach: a file a bench, each with `STEPS` and `run(seed, asked)`, which yields trainings.

`python -m benchmarks.dials` runs them, see `__main__`.
"""
