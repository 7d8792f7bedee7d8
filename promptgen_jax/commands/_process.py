"""What a command makes of its process: memory that it keeps, and a device of JAX for each core.

glibc gives large blocks back to the system as soon as they are free. XLA takes its temporary memory anew at every call,
so the system has to fill each of its pages with zeros each time: of a training step on the shipped faces that was a
sixth of the time, of a gradient of StyleGAN2-256 a third.

XLA splits large products over the cores, but little else, which small networks have most of: a step on the shipped
faces kept 1.3 of 2 cores busy. With a device for each core, each has its part of the batch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Mapping
from typing import Any

KEPT = 1 << 30  # bytes: of what is free so much stays at most, and no larger block

# of mallopt(3): one arena, as those of threads hold 64 MiB at most and ask the system for what is larger
OPTIONS = {"MALLOC_ARENA_MAX": (-8, 1), "MALLOC_MMAP_THRESHOLD_": (-3, KEPT), "MALLOC_TRIM_THRESHOLD_": (-1, KEPT)}

ENOUGH = 8  # samples of a batch, for which a device of their own is worth a copy of all weights
MOST = 4  # devices, which have to wait for each other at every step


def keep_memory() -> None:
    """Keeps up to 1 GiB of free memory in this process. To be called before JAX starts its threads.

    Nothing happens without glibc, or where the environment has options of its allocator already.
    """
    if any(name in os.environ for name in (*OPTIONS, "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES", "LD_PRELOAD")):
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # musl, macOS and Windows have no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in OPTIONS.values():
            mallopt(option, value)


def split_over_cores(config: Mapping[str, Any]) -> None:
    """Makes a CPU as many devices of JAX as `devices_for` the stages of a config. To be called before JAX has any.

    Nothing happens where the environment says how many there are.
    """
    import jax

    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    trainings = [stage.get("training") for stage in config["stages"].values()]
    # there are devices already, or an older JAX has no such option
    with contextlib.suppress(RuntimeError, AttributeError):
        jax.config.update("jax_num_cpu_devices", devices_for([each for each in trainings if each], cores))


def devices_for(trainings: list[Mapping[str, Any]], cores: int) -> int:
    """How many devices a CPU is to have: at most one per core and four, which share out every batch evenly.

    Of the smallest `batch_size` each has 8 samples at least, so that large networks, of small batches, stay on one.

    Args:
      trainings: options of `TrainConfig`, of every stage.
      cores: of the processor, that this process may use.
    """
    from promptgen_jax.training import TrainConfig

    trainings = [{"batch_size": TrainConfig.batch_size, **each} for each in trainings]
    batches = [
        count
        for each in trainings
        for name, count in {**each, **(each.get("objective_options") or {})}.items()
        if name == "eval_size" or name.endswith(("batch", "batch_size"))
    ]
    least = min((each["batch_size"] for each in trainings), default=0)
    most = min(cores, MOST, least // ENOUGH)
    return max((number for number in range(2, most + 1) if all(count % number == 0 for count in batches)), default=1)
