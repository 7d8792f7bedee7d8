"""What readers may cost and say, and small honest folders that tests change."""

import contextlib
import functools
import resource
import time

import hypothesis
import jax

import promptgen_jax as pg
from promptgen_jax.flows import base as flows
from promptgen_jax.generators import synthetic

CONSTANT, SECONDS = 200 * 2**20, 10
MANY = 700  # changed inputs a reader: more than ten thousand in all
STAGE = {
    "controls": {"c": {"kind": "synthetic", "energy": "quadratic", "target": [1.0, 0.0]}},
    "training": {"num_steps": 2},
}
RUN = {
    "generator": {"name": "synthetic", "problem": "linear", "dim": 2},
    "stages": {"a": STAGE},
    "order": ["a"],
    "evaluation": {"num_samples": 8, "judges": {"faceres": ["gender"]}, "metrics": []},
    "mixtures": {"m": {"stages": ["a"], "judges": [[["faceres", "gender", "male"]]]}},
}


@contextlib.contextmanager
def bounded(size):
    """Limits the memory that may be asked for beside what is there; checks the time."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[5]) * resource.getpagesize()
    before, started = resource.getrlimit(resource.RLIMIT_DATA), time.process_time()
    resource.setrlimit(resource.RLIMIT_DATA, (now + 2 * size + CONSTANT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
        assert time.process_time() - started < SECONDS


def tell(reader, path, named=None):
    """What a reader says of a file, or None if it reads it; anything else than one sentence fails."""
    try:
        reader(path)
    except (ValueError, OSError) as error:
        message = str(error)
        assert (named or path.name) in message, message
        assert "MemoryError" not in message
        assert len(message) < 2000
        return message
    return None


def settings(examples):
    return hypothesis.settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def flow_folder(folder):
    prior = pg.load_generator("synthetic", problem="linear", dim=2).prior
    flow, params = pg.init_flow(jax.random.key(0), prior, architecture="coupling", num_layers=2, hidden_dim=2)
    flows.save_flow(folder, flow, params)
    return folder


@functools.cache
def a_generator():
    return synthetic.build(problem="linear", dim=2)
