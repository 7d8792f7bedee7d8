"""The flow against the official one: a checkpoint in official layout, converted, then every stored number, compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest

from convert import promptgen_to_flax
from promptgen_jax.flows.base import load_flow
from promptgen_jax.flows.bijectors import Rotation, SideBySide

# name: manifest, suffixes of the golden arrays of its flows, number of trained parameters per flow
CASES = {
    "inn_allinone": ("manifest", ("",), 1_587_200),
    "inn_allinone_conditional": ("manifest_conditional", ("2",), 1_593_344),
    "inn_allinone_biggan": ("manifest_biggan", ("3", "4"), 398_336),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    manifest, suffixes, num_params = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    official.write_bin(folder / "in.bin", official.state_dict(official.load_json(f"inn_allinone/{manifest}.json")))
    arguments = [str(folder / "in.bin"), str(folder / "out"), "--y_scale=1"]
    assert promptgen_to_flax.main(arguments) == 0
    flow, params = load_flow(folder / "out")
    golden = official.load_golden("inn_allinone")

    def stored(name):
        side, _, rest = name.partition("_")
        return [golden[f"{side}{suffix}_{rest}"] for suffix in suffixes]

    cond = jnp.asarray(golden["in2_c"]) if flow.cond_dim else None
    return flow, params, stored, cond, len(suffixes) * num_params


@jax.jit
def forward(flow, params, eps, cond):
    return flow.forward_and_log_det(params, eps, cond)


@jax.jit
def inverse(flow, params, z, cond):
    return flow.inverse_and_log_det(params, z, cond)


@jax.jit
def blocks(flow, params, pieces, cond):
    """Per piece of the noise: z (16 of its numbers) and log_det of every block, first to last."""
    bijector = flow.bijector(params, cond)
    chains = bijector.bijectors if isinstance(bijector, SideBySide) else [bijector]
    found = []
    for chain, x in zip(chains, pieces, strict=True):
        z, log_dets, total = [], [], 0.0
        for step in reversed(chain.bijectors):
            x, log_det = step.forward_and_log_det(x)
            total += log_det
            if isinstance(step, Rotation):
                z.append(x[:, :16])
                log_dets.append(total)
                total = 0.0
        found.append((jnp.stack(z), jnp.stack(log_dets)))
    return found


@jax.jit
def gradients_by_noise(flow, params, eps, cond, weights):
    def total(eps, index):
        return jnp.sum(forward(flow, params, eps, cond)[index] * (weights if index == 0 else 1))

    return [jax.grad(total)(eps, index) for index in (0, 1)]


@jax.jit
@functools.partial(jax.value_and_grad, argnums=1)
def loss_and_gradient(flow, params, eps, cond):
    z, log_det = flow.forward_and_log_det(params, eps, cond)
    return jnp.mean(0.5 * jnp.sum(z**2, axis=1) - log_det)


def weighting(arrays):
    """The golden gradients are those of sum(z * w), w = cos(0.01 n), for each flow apart."""
    return np.concatenate([np.cos(np.arange(a.size) * 0.01).reshape(a.shape) for a in arrays], axis=1).astype(
        np.float32
    )


def test_sizes(case):
    flow, params, stored, _, num_params = case
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == num_params
    assert flow.prior.blocks == tuple(a.shape[1] for a in stored("in_eps"))


def test_forward(case):
    flow, params, stored, cond, _ = case
    z, log_det = forward(flow, params, jnp.concatenate(stored("in_eps"), axis=1), cond)
    official.assert_close("z", z, np.concatenate(stored("out_z"), axis=1))
    official.assert_close("log_det", log_det, sum(stored("out_log_det")))


def test_inverse(case):
    flow, params, stored, cond, _ = case
    eps, log_det = inverse(flow, params, jnp.concatenate(stored("in_z"), axis=1), cond)
    official.assert_close("eps", eps, np.concatenate(stored("out_inverse"), axis=1))
    official.assert_close("log_det", log_det, sum(stored("out_inverse_log_det")))


def test_every_block(case):
    flow, params, stored, cond, _ = case
    found = blocks(flow, params, stored("in_eps"), cond)
    for (z, log_dets), block_z, block_log_det in zip(
        found, stored("mid_block_z"), stored("mid_block_log_det"), strict=True
    ):
        official.assert_close("block z", z, block_z)
        official.assert_close("block log_det", log_dets, block_log_det)


def test_gradient_by_noise(case):
    flow, params, stored, cond, _ = case
    eps = jnp.concatenate(stored("in_eps"), axis=1)
    grad_z, grad_log_det = gradients_by_noise(flow, params, eps, cond, weighting(stored("in_eps")))
    official.assert_close("grad z", grad_z, np.concatenate(stored("out_grad_z"), axis=1))
    official.assert_close("grad log_det", grad_log_det, np.concatenate(stored("out_grad_log_det"), axis=1))


def test_loss_and_gradient_by_params(case):
    flow, params, stored, cond, _ = case
    eps = jnp.concatenate(stored("in_eps"), axis=1)
    loss, grads = loss_and_gradient(flow, params, eps, cond)
    official.assert_close("loss", loss, sum(stored("out_loss")))
    order = official.load_json("inn_allinone/param_order.json")
    for index, norms in enumerate(stored("out_param_grad_norms")):
        named = official.by_official_name(grads, index)
        official.assert_close("norms", [np.linalg.norm(named[name]) for name in order], norms)
        for block in (0, 7):
            prefix = f"module_list.{block}."
            for name, short in official.SLICES.items():
                got = named[prefix + name]
                got = got[:8, -8:] if name == "subnet.0.weight" else got.reshape(-1)
                official.assert_close(short, got, stored(f"out_grad_block{block}_{short}")[index])
