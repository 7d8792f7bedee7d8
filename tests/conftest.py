"""Options and settings that all tests share."""

import contextlib
import ctypes
import gc
import os
import sys
import time
from pathlib import Path

if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))) > 1:  # they share the cores; read when NumPy loads
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC"):
        os.environ.setdefault(name, str(max(1, (os.cpu_count() or 1) // workers)))

import jax
import pytest

STARTED = time.monotonic()
ROOMY = 3 << 30  # bytes that a process of tests may keep of what it compiled
LARGE = ("test_biggan", "test_diffae", "test_nvae", "test_stylegan2", "test_stylenerf")  # gigabytes: never two at once
RUN_LONG = (*LARGE, "test_face_networks", "test_exact_bench")  # their full checks: longer than XLA's optimiser takes


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the slow full-size checks, marked `full`")
    parser.addoption("--minutes", type=float, metavar="N", help="skip what is marked `full` and has not begun by then")
    parser.addoption("--update-counts", action="store_true", help="keep what test_counts.py counts as it is now")


def pytest_configure(config):
    """Compile fast, not well, and once for all processes, unless the environment says otherwise."""
    settings = {
        "jax_persistent_cache_min_compile_time_secs": 0.02,
        "jax_disable_most_optimizations": True,
    }
    if hasattr(config, "cache"):
        settings["jax_compilation_cache_dir"] = str(config.cache.mkdir("compiled"))
    if jax.__version_info__ >= (0, 10):  # an older XLA may not know the flags, and one unknown ends it
        flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        os.environ.setdefault("XLA_FLAGS", flags)
    for name, value in settings.items():
        if name.upper() not in os.environ:
            os.environ[name.upper()] = str(value)
            jax.config.update(name, value)
    gc.set_threshold(100_000, 50, 100)  # tracing makes many objects that stay


def pytest_collection_modifyitems(config, items):
    for item in items:  # for --dist loadgroup
        file = item.path.stem
        item.add_marker(pytest.mark.xdist_group("large" if file in LARGE else file))
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason="slow full-size check, run with --full"))


def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    if minutes is not None and item.get_closest_marker("full") and time.monotonic() - STARTED > 60 * minutes:
        pytest.skip(f"not begun within {minutes:g} minutes; run it with --full alone")


def resident():
    """Bytes of memory that this process holds; all there is where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return sys.maxsize


@pytest.fixture(autouse=True, scope="module")
def memory_is_given_back(tmp_path_factory):
    """What a module of tests loaded and wrote to import, when it is done, and compiled programs before they fill up."""
    yield
    if resident() > ROOMY:
        jax.clear_caches()
        with contextlib.suppress(OSError, AttributeError):  # not Linux; without it clearing gives nothing back
            ctypes.CDLL("libc.so.6").malloc_trim(0)
    written = str(tmp_path_factory.getbasetemp())
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or [*getattr(module, "__path__", ""), ""][0]).startswith(written):
            del sys.modules[name]  # another module of tests writes its own under that name
    for name, module in list(sys.modules.items()):
        for function in vars(module).values() if name.startswith(("official_", "test_", "formulas")) else ():
            if hasattr(function, "cache_clear"):
                function.cache_clear()


@pytest.fixture(autouse=True)
def compiled_well(request):
    """XLA's optimiser where it saves more time than it takes."""
    before = jax.config.values["jax_disable_most_optimizations"]
    runs_long = request.path.stem in RUN_LONG and request.node.get_closest_marker("full")
    jax.config.update("jax_disable_most_optimizations", before and not runs_long)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(autouse=True)
def highest_precision():
    """Full float32 in matrix products, also on accelerators."""
    with jax.default_matmul_precision("highest"):
        yield
