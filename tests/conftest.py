"""Options and settings that all tests share."""

import os
import sys

import jax
import pytest

LARGE = ("test_biggan", "test_diffae", "test_nvae", "test_stylegan2", "test_stylenerf")  # gigabytes: never two at once


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the slow full-size checks, marked `full`")


def pytest_configure(config):
    """Compile small programs fast, not well, and once for all processes, unless the environment says otherwise."""
    settings = {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_disable_most_optimizations": not config.getoption("--full"),
    }
    if hasattr(config, "cache"):
        settings["jax_compilation_cache_dir"] = str(config.cache.mkdir("compiled"))
    for name, value in settings.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            jax.config.update(name, value)


def pytest_collection_modifyitems(config, items):
    for item in items:  # for --dist loadgroup
        file = item.path.stem
        item.add_marker(pytest.mark.xdist_group("large" if file in LARGE else file))
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="slow full-size check, run with --full"))


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back():
    """What a module compiled and loaded, when it is done: together they take gigabytes."""
    yield
    jax.clear_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "mypackage"]:
        del sys.modules[name]  # another page or test writes its own
    for name, module in list(sys.modules.items()):
        for function in vars(module).values() if name.startswith(("official_", "test_", "formulas")) else ():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


@pytest.fixture(autouse=True)
def highest_precision():
    """Full float32 in matrix products, also on accelerators."""
    with jax.default_matmul_precision("highest"):
        yield
