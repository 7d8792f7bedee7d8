"""Programs whose operations and memory are kept in a table, counts.json, so that no change makes them dearer unseen.

`tests/test_counts.py` compares; `python -m pytest tests/test_counts.py --update-counts` writes the table anew.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import promptgen_jax as pg
from benchmarks import counting
from benchmarks.case import seeded
from benchmarks.machine import processor
from promptgen_jax.generators import biggan, diffae, nvae
from promptgen_jax.generators.stylegan2 import StyleGAN2
from promptgen_jax.models import network, stylegan2
from promptgen_jax.objectives import ReverseKL
from promptgen_jax.training import train
from promptgen_jax.training.config import make_objective
from promptgen_jax.training.optimizer import make_optimizer

TABLE = Path(__file__).parent / "counts.json"
TOLERANCE = 0.1
BATCH = 4
FLOW = {"architecture": "allinone", "num_layers": 8, "hidden_dim": 128}
COUPLING = {"architecture": "coupling", "num_layers": 8, "hidden_dim": 64, "directions": 20}


def faces(*controls: Any, flow: dict = FLOW) -> tuple[pg.LatentEBM, Any, Any]:
    """The shipped faces with these controls, and a flow, the paper's, with its parameters."""
    generator = pg.load_generator("dcgan_digiface")
    return pg.LatentEBM(generator, controls), *pg.init_flow(jax.random.key(0), generator.prior, **flow)


def smile() -> Any:
    """Everybody smiles."""
    return pg.load_control(
        "classifier", network="faceapi_expression", attribute="expression", target="happy", weight=3.0
    )


def text() -> Any:
    """A text, as the shipped CLIP reads it, in eight views."""
    return pg.load_control(
        "clip", network="tinyclip_faces", text="a photo of a smiling woman", num_augmentations=8, chunk=4
    )


def image(generator: Any) -> tuple[Callable, tuple]:
    """Images of latents."""
    z = generator.prior.sample(jax.random.key(0), BATCH)
    return lambda generator, key, z: generator(key, z), (generator, jax.random.key(1), z)


def gradient_of_z(generator: Any) -> tuple[Callable, tuple]:
    """Gradient of the images' mean square by the latents."""
    forward, (_, key, z) = image(generator)
    return jax.grad(lambda z, generator, key: jnp.mean(forward(generator, key, z) ** 2)), (z, generator, key)


def gradient_of_flow(ebm: pg.LatentEBM, flow: Any, params: Any) -> tuple[Callable, tuple]:
    """Loss and gradient of reverse KL."""
    objective, key = ReverseKL(batch_size=BATCH), jax.random.key(2)
    return jax.value_and_grad(lambda *each: objective(*each)[0]), (params, key, ebm, flow)


def flow_alone(dim: int) -> tuple[Callable, tuple]:
    """The terms of the loss that need no image, with their gradient."""
    prior = pg.Prior.standard(dim)
    flow, params = pg.init_flow(jax.random.key(0), prior, architecture="allinone", num_layers=8, hidden_dim=256)

    def loss(params: Any, flow: Any, eps: Any) -> jax.Array:
        z, log_det = flow.forward_and_log_det(params, eps)
        return -jnp.mean(log_det + prior.log_prob(z))

    return jax.value_and_grad(loss), (params, flow, prior.sample(jax.random.key(1), 64))


def whole_step(objective: str, flow: dict = FLOW) -> tuple[Callable, tuple]:
    """The training step of the smile, optimiser included."""
    ebm, made, params = faces(smile(), flow=flow)
    config = pg.TrainConfig(num_steps=10, batch_size=BATCH, objective=objective)
    options = {"objective": make_objective(config), "config": config}
    options["optimizer"] = make_optimizer(learning_rate=1e-3, num_steps=10)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": options["optimizer"].init(params),
        "beta": {},
        "best": params,
        "best_loss": jnp.float32(jnp.inf),
    }
    memory = options["objective"].init(ebm, made, params)
    state |= {train.MEMORY: memory} if jax.tree.leaves(memory) else {}
    return functools.partial(train.train_step, **options), (state, ebm, made)


def small_stylegan2() -> StyleGAN2:
    """64 pixels, and a quarter of the channels."""
    module = stylegan2.StyleGAN2((128, 128, 128, 128, 128), style_dim=128, mapping_layers=4)
    weights = seeded(network.expected_tree(module, jax.ShapeDtypeStruct((1, 128), jnp.float32)))
    return StyleGAN2(weights=weights, prior=pg.Prior.standard(128), module=module, name="small", image_size=64)


PROGRAMS: dict[str, Callable[[], tuple[Callable, tuple]]] = {
    "flow, d = 512, gradient": lambda: flow_alone(512),
    "dcgan, images": lambda: image(pg.load_generator("dcgan_digiface")),
    "dcgan, gradient of z": lambda: gradient_of_z(pg.load_generator("dcgan_digiface")),
    "stylegan2 at 64 px, gradient of z": lambda: gradient_of_z(small_stylegan2()),
    "biggan, tiny, gradient of z": lambda: gradient_of_z(biggan.tiny()),
    "nvae, tiny, gradient of z": lambda: gradient_of_z(nvae.tiny()),
    "diffae, tiny, gradient of z": lambda: gradient_of_z(diffae.tiny()),
    "smile, gradient of the flow": lambda: gradient_of_flow(*faces(smile())),
    "text, gradient of the flow": lambda: gradient_of_flow(*faces(text())),
    "smile, training step": lambda: whole_step("reverse_kl"),
    "smile of the quick start, training step": lambda: whole_step("mixed", COUPLING),
}


def count(name: str) -> dict[str, float]:
    """Operations, equations and temporary memory of a program."""
    function, arguments = PROGRAMS[name]()
    traced = jax.jit(function).trace(*arguments)
    return {
        "gflop": counting.gflop(traced),
        "equations": counting.equations(traced),
        "temporary_mib": counting.memory(traced.lower().compile())["temporary_mib"],
    }


def about() -> dict[str, str]:
    """What memory depends on beside the code: it is compared where all of this is the same."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {"jax": jax.__version__, "backend": jax.default_backend(), "processor": processor(), "flags": flags}


def table() -> dict:
    """What is kept: {"about": ..., "programs": {name: counts}, ...}."""
    return json.loads(TABLE.read_text())


def changed(name: str, found: dict[str, float], kept: dict[str, float]) -> list[str]:
    """A sentence for every count that is further from what is kept than the tolerance, on either side."""
    return [
        f"{name}: {count} is {found[count]:.4g}, kept is {kept[count]:.4g}."
        for count in found
        if abs(found[count] - kept[count]) > TOLERANCE * kept[count]
    ]
