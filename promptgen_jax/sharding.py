"""Data parallelism: one `data` mesh axis over all devices; batches are split, everything else is replicated."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


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


def local(tree):
    """Whole copies that this host has of replicated arrays, for work that it does alone; one host has them already."""
    return tree if jax.process_count() == 1 else jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def is_first_host() -> bool:
    """Whether this is the host that writes files: one of several does."""
    return jax.process_index() == 0


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
