"""Options and settings that all tests share."""

import jax
import pytest


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the slow full-size checks, marked `full`")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="slow full-size check, run with --full"))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_dropped():
    """Those of a module, when it is done: together they take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def highest_precision():
    """Full float32 in matrix products, also on accelerators."""
    with jax.default_matmul_precision("highest"):
        yield
