"""The official optimisation: two training steps of flow and beta, number for number."""

import jax
import jax.numpy as jnp
import numpy as np
import official
import optax
import pytest
from golden import seeded

from convert import promptgen_to_flax
from promptgen_jax.flows.base import load_flow
from promptgen_jax.training.optimizer import make_optimizer

ATTRIBUTES = {"race": slice(0, 7), "gender": slice(7, 9), "age": slice(9, 18)}
DEBIAS_WEIGHT = 2.0


@pytest.fixture(scope="module")
def golden():
    return official.load_golden("energies")


@pytest.fixture(scope="module")
def inn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("energies")
    official.write_bin(folder / "in.bin", official.state_dict(official.load_json("energies/manifest_inn.json")))
    assert promptgen_to_flax.main([str(folder / "in.bin"), str(folder / "out")]) == 0
    return load_flow(folder / "out")


def toy_images(toy, z):
    """(B, 512) to (B, 3, 16, 16); the official run repeats each pixel 4x4, which the cell means below undo."""
    return (0.5 + 0.5 * jnp.tanh(z @ toy["toy_generator.weight"])).reshape(-1, 3, 16, 16)


def toy_age_logits(toy, images):
    cells = images.reshape(-1, 3, 8, 2, 8, 2).mean(axis=(3, 5))
    logits = jnp.einsum("bcij,kcij->bk", cells, toy["toy_fairface.weight"]) + toy["toy_fairface.bias"]
    return logits[:, ATTRIBUTES["age"]]


def slices(params):
    named = official.by_official_name(params)
    return {
        "block0_global_offset": named["module_list.0.global_offset"][0],
        "block3_bias2": named["module_list.3.subnet.2.bias"],
        "block7_global_scale": named["module_list.7.global_scale"][0],
        "weight": named["module_list.5.subnet.0.weight"][:16, :16],
    }


def test_energies_debias_training_steps(golden, inn):
    """Beta trains along with the flow, as in the official code, so it is one more parameter here."""
    flow, flow_params = inn
    toy = seeded.seeded_state_dict(official.load_json("energies/manifest.json"))
    optimizer = make_optimizer(learning_rate=1e-3, num_steps=10)
    params = {"flow": flow_params, "beta": jnp.asarray(golden["in2_train_beta_age"])}

    def loss_fn(params, flow, eps):
        z, log_det = flow.forward_and_log_det(params["flow"], eps)
        images = toy_images(toy, z)
        debias = -jax.nn.softmax(toy_age_logits(toy, images)) @ params["beta"]
        prior = 0.5 * jnp.sum(z**2, axis=1)
        total = DEBIAS_WEIGHT * debias + prior - log_det
        return jnp.mean(total), dict(
            image=images, DebiasEnergy=debias, PriorZEnergy=prior, neg_log_det=-log_det, weighted_loss=total
        )

    @jax.jit
    def step(params, state, flow, eps):
        (loss, parts), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, flow, eps)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, parts | dict(loss=loss), grads

    state = optimizer.init(params)
    params, state, parts, grads = step(params, state, flow, golden["in2_train_eps"][0])
    for name, got in parts.items():
        official.assert_close(name, got, golden[f"out2_train_{name}"])

    named = official.by_official_name(grads["flow"])
    norms = [np.linalg.norm(named[name]) for name in official.load_json("energies/param_order.json")]
    official.assert_close("norms", norms, golden["out2_train_grad_norms"])
    official.assert_close("total norm", optax.tree.norm(grads["flow"]), golden["out2_train_total_norm"])
    official.assert_close("total norm with beta", optax.tree.norm(grads), golden["out2_train_total_norm_official"])
    official.assert_close("grad beta", grads["beta"], golden["out2_train_grad_beta_age"])
    for name in ("block0_global_offset", "block3_bias2", "block7_global_scale"):
        official.assert_close(f"grad {name}", slices(grads["flow"])[name], golden[f"out2_train_grad_{name}"])

    check_params(1, params, golden)
    params, state, *_ = step(params, state, flow, golden["in2_train_eps"][1])
    check_params(2, params, golden)


def check_params(number, params, golden):
    """Against the size of one update, 1e-3: parameters themselves hardly move, and would hide any error."""
    for name, got in {"beta_age": params["beta"], **slices(params["flow"])}.items():
        error = np.max(np.abs(got - golden[f"out2_train_step{number}_{name}"]))
        print(f"step {number} {name}: {error:.1e}")
        assert error < 2e-6, f"step {number} {name}: {error:.1e}"
