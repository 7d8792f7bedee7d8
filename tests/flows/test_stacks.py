"""Rotations are one array in files and apart in memory, where a program reads each without a copy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promptgen_jax as pg
from benchmarks import counting
from promptgen_jax.flows.base import load_flow, save_flow
from promptgen_jax.store import weights
from promptgen_jax.store.fingerprint import fingerprint
from promptgen_jax.types import Prior, Stack


@pytest.mark.parametrize("kind", ["realnvp", "mixture"])
def test_rotations_are_one_array_on_disk_and_to_fingerprints(kind, tmp_path):
    """As earlier releases wrote and read them."""
    options = {"part": {"num_layers": 3, "hidden_dim": 8}, "num_parts": 2} if kind == "mixture" else {"num_layers": 3}
    flow, params = pg.init_flow(jax.random.key(0), Prior.standard(6), kind=kind, **options)
    rotations = flow.buffers["flows_0"]["rotations"]
    assert isinstance(rotations, Stack)
    assert len(jax.tree.leaves(rotations)) == 3
    save_flow(tmp_path / "flow", flow, params)
    tree, _ = weights.load_weights(tmp_path / "flow")
    saved = tree["buffers"]["flows_0"]["rotations"]
    assert saved.shape == ((2, 3, 6, 6) if kind == "mixture" else (3, 6, 6))
    again, _ = load_flow(tmp_path / "flow")
    assert isinstance(again.buffers["flows_0"]["rotations"], Stack)
    assert all(map(np.array_equal, jax.tree.leaves(flow), jax.tree.leaves(again)))
    assert fingerprint(rotations) == fingerprint(np.asarray(saved))


def test_no_rotation_is_copied():
    """Beside its arguments and results a program needs less than it takes to hold the rotations once more."""
    flow, params = pg.init_flow(jax.random.key(0), Prior.standard(256), num_layers=8, hidden_dim=16)
    loss = jax.jit(jax.grad(lambda params, flow, eps: jnp.sum(flow.forward_and_log_det(params, eps)[0] ** 2)))
    compiled = loss.lower(params, flow, flow.prior.sample(jax.random.key(1), 4)).compile()
    assert counting.memory(compiled)["temporary_mib"] < 0.5 * 8 * 256**2 * 4 / 2**20
