"""Devices: one `data` mesh axis over all of them, several hosts, one engine for batches, and what XLA has compiled.

Batches are split over the devices, everything else is replicated, but for large frozen weights where that is asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import platformdirs
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

CACHE = "compiled"
LARGE = 2**16  # numbers of an array, from which on splitting it saves more than telling each other its parts costs


def data_mesh() -> Mesh:
    """All devices of all hosts on one axis named `data`."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def local_mesh() -> Mesh:
    """The devices of this host, for work that hosts share out without talking to each other."""
    return jax.make_mesh(
        (jax.local_device_count(),), ("data",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree, mesh: Mesh):
    """Puts a whole copy of every array of `tree` on every device of the mesh, on every host."""
    sharding = replicated(mesh)

    def put(leaf):
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(put, tree)


def shard(tree, mesh: Mesh):
    """Splits every array of 2^16 numbers or more over the devices, along its longest axis that they divide.

    What is smaller, or has no such axis, lies whole on every device. Programs put the parts together where they need
    them, so results are the same to rounding.
    """

    def put(leaf):
        shape = np.shape(leaf)
        axes = [axis for axis, length in enumerate(shape) if length % mesh.size == 0]
        if math.prod(shape) < LARGE or not axes:
            return replicate(leaf, mesh)
        longest = max(axes, key=lambda axis: shape[axis])
        sharding = NamedSharding(mesh, PartitionSpec(*[None] * longest, "data"))
        return jax.make_array_from_callback(shape, sharding, lambda index: np.asarray(leaf[index]))

    return jax.tree.map(put, tree)


def gather(tree, mesh: Mesh):
    """Whole copies on every device of arrays that `shard` has split."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def local(tree):
    """Whole copies that this host has of replicated arrays, for work that it does alone; one host has them already."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def is_first_host() -> bool:
    """Whether this is the host that writes files: one of several does."""
    return jax.process_index() == 0


def agreed(well: bool) -> bool:
    """What the first host says, on all of them."""
    return well if jax.process_count() == 1 else bool(multihost_utils.broadcast_one_to_all(np.array(well)))


def wait_for_hosts(what: str) -> None:
    """Returns when all hosts have come to the same place, called `what`; at once if there is one."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def start_hosts(coordinator: str, num_processes: int, process_id: int) -> None:
    """Joins the processes of a multi-host run; on TPU pods and Slurm leave the arguments empty or -1.

    Args:
      coordinator: "host:port" of process 0, or "" to detect.
      num_processes: how many processes, or -1 to detect.
      process_id: rank of this one, or -1 to detect.
    """
    if coordinator:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    else:
        jax.distributed.initialize()


def images_at_a_time(image_size: int, batch_size: int | None = None) -> int:
    """Images of so many pixels a side that one device makes together, if nobody says how many.

    They have 2^17 pixels on a CPU, four million on others. On a CPU more of them leave its cache and take longer, each.
    """
    return _of_pixels(2**17, image_size) if batch_size is None else batch_size


def seen_at_a_time(image_size: int, batch_size: int | None = None) -> int:
    """As `images_at_a_time`, of images that networks look at too: a quarter on a CPU, whose cache they need as well."""
    return _of_pixels(2**15, image_size) if batch_size is None else batch_size


def _of_pixels(pixels: int, image_size: int) -> int:
    pixels = pixels if jax.default_backend() == "cpu" else 2**22
    return min(64, max(1, pixels // max(1, image_size) ** 2))


def latents_at_a_time(dim: int) -> int:
    """Latents of so many numbers that pass a flow together on one device, where no image is made: half a million."""
    return min(4096, max(64, 2**19 // dim))


def filter_none(*arrays) -> list:
    """The arrays that are not None."""
    return [array for array in arrays if array is not None]


def stream_batches(function, batch_size: int, *arrays, shared: tuple = ()) -> Iterator:
    """Applies a function of batches to whole arrays, split over the devices of this host, and yields batch after batch.

    While one batch is used the next is computed. Every batch has the same size, so that it is compiled once; what fills
    up the last is cut off. For the result not to depend on that size, every sample has to bring its own key.

    Args:
      function: jitted, of `(*shared, *batch)` to a tree of arrays with one row per sample.
      batch_size: samples per device at a time, less if there are too few for that.
      *arrays: of one length, NumPy or JAX, also of keys.
      shared: what every batch needs, weights say: put on every device once.

    Yields:
      Trees of NumPy arrays, of as many samples as a batch holds, the last of what is left.
    """
    mesh, total = local_mesh(), len(arrays[0])
    size = max(1, min(batch_size, -(-total // mesh.size))) * mesh.size
    shared = jax.device_put(shared, replicated(mesh))
    waiting = None
    for start in range(0, total, size):
        count = min(size, total - start)
        rows = start + np.resize(np.arange(count), size)
        batch = arrays if size == total else [array[rows] for array in arrays]
        made = function(*shared, *jax.device_put(batch, batch_sharding(mesh)))
        if waiting is not None:
            yield _fetched(*waiting)
        waiting = made, count
    if waiting is not None:
        yield _fetched(*waiting)


def _fetched(made, count: int):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], made)


def map_batches(function, batch_size: int, *arrays, shared: tuple = ()):
    """All of `stream_batches` together, a tree of whole NumPy arrays; there has to be at least one sample."""
    pieces = list(stream_batches(function, batch_size, *arrays, shared=shared))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)


@contextlib.contextmanager
def compilations_kept() -> Iterator[None]:
    """Within it, compiled programs are kept in the user's own cache folder, unless JAX has a place for them.

    A program that is read there is run, so nobody else may write there: a folder that is somebody else's is not used.
    All are kept: JAX leaves out what it compiled within a second, which on a fast machine is all there is.
    """
    config: Any = jax.config  # JAX adds its options to it at run time
    folder = None if config.jax_compilation_cache_dir else _own_cache()
    if folder is None:
        yield
        return
    seconds = config.jax_persistent_cache_min_compile_time_secs
    _use(str(folder), 0.0)
    try:
        yield
    finally:
        _use(None, seconds)


def _own_cache() -> Path | None:
    """The folder of compiled programs of this user, whom alone it belongs to; None if there cannot be one."""
    try:
        folder = platformdirs.user_cache_path("promptgen_jax", appauthor=False) / CACHE
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid"):
            if folder.stat().st_uid != os.getuid():
                return None
            folder.chmod(0o700)
    except (OSError, RuntimeError):
        return None
    return folder


def _use(folder: str | None, seconds: float) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
    compilation_cache.reset_cache()  # JAX looks at the option only once
