"""What commands make of their process: freed memory is taken again, and a CPU has a device for each core."""

import ctypes
import json
import os
import platform
import subprocess
import sys

import numpy as np
import pytest

from promptgen_jax.commands import _process

SIZE = 128 << 20  # bytes, as much as a training step on the shipped faces takes
PAGES = SIZE // os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
PROGRAM = f"""
import ctypes, resource, threading
from promptgen_jax.commands import _process
_process.keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    block = libc.malloc({SIZE})
    ctypes.memset(block, 1, {SIZE})
    libc.free(block)
def uses():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    use()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=uses)  # as JAX's programs do, not in the main thread
thread.start()
thread.join()
"""


def new_pages(**options):
    """Pages that a thread of a new process got for a block as large as one that it had just freed."""
    rest = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC", "LD_PRE"))}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=rest | options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="commands ask glibc alone")
def test_freed_memory_is_taken_again_without_new_pages():
    assert new_pages() < PAGES / 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="commands ask glibc alone")
def test_users_choose_in_the_environment():
    assert new_pages(MALLOC_MMAP_THRESHOLD_="1048576") > PAGES / 2


def test_without_glibc_nothing_happens(monkeypatch):
    def unknown(name):
        raise OSError(f"{name}: no such library")

    for name in [name for name in os.environ if name.startswith(("MALLOC", "GLIBC", "LD_PRE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", unknown)
    _process.keep_memory()


@pytest.mark.parametrize(
    ("trainings", "cores", "number"),
    [
        ([{"batch_size": 32}], 2, 2),
        ([{"batch_size": 32}], 16, 4),  # eight samples each
        ([{"batch_size": 32}, {"batch_size": 16}], 16, 2),  # the same for all stages
        ([{"batch_size": 512}], 16, 4),
        ([{"batch_size": 48}], 4, 4),
        ([{"batch_size": 50}], 4, 2),  # evenly
        ([{"batch_size": 32, "kl_batch_size": 1001}], 4, 1),
        ([{"batch_size": 32, "objective_options": {"prior_batch": 6}}], 4, 2),
        ([{"batch_size": 32, "objective_options": {"forward_share": 0.46, "prior_batch": 8}}], 4, 4),
        ([{"batch_size": 32, "eval_size": 255}], 4, 1),
        ([{"batch_size": 2}], 4, 1),
        ([{}], 4, 1),  # the paper's batches of 8
        ([], 4, 1),
        ([{"batch_size": 32}], 1, 1),
    ],
)
def test_devices_share_out_every_batch(trainings, cores, number):
    assert _process.devices_for(trainings, cores) == number


def report_of(workdir, **options):
    """What a small training in a process of its own says."""
    call = [sys.executable, "main.py", "--config=configs/synthetic_linear.py:smoke", f"--workdir={workdir}", "--quiet"]
    call += ["--config.stages.quadratic.training.batch_size=32", "--config.stages.quadratic.training.kl_batch_size=0"]
    rest = {name: value for name, value in os.environ.items() if name not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run(call, env=rest | options, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((workdir / "report.json").read_text())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="counts the cores as Linux does")
def test_a_command_uses_its_cores_and_finds_the_same(tmp_path):
    cores = len(os.sched_getaffinity(0))
    ours = report_of(tmp_path / "cores", JAX_PLATFORMS="cpu")
    alone = report_of(tmp_path / "alone", JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    devices = _process.devices_for([{"batch_size": 32}], cores)
    assert ours["hardware"].startswith(f"{devices} x cpu")
    assert alone["hardware"].startswith("1 x cpu")
    for one, other in zip(ours["stages"], alone["stages"], strict=True):
        for name in ("reverse_kl", "forward_kl", "log_z"):
            np.testing.assert_allclose(one["exactness"][name], other["exactness"][name], atol=1e-3)
