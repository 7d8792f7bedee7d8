"""A training step of the smile on 1, 2, 4 and 8 virtual devices: losses, messages and memory of each.

The flow is the paper's: of a loop, as coupling flows are, messages would be counted once. Each number of devices takes
a process of its own, since XLA is told at its start.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys

COUNTS = (1, 2, 4, 8)
FLAG = "--xla_force_host_platform_device_count"
STEPS = 3


def measure(quick: bool) -> list[dict]:
    """A record for each number of devices.

    Raises:
      RuntimeError: a process failed.
    """
    return [run(count, quick) for count in (COUNTS[:2] if quick else COUNTS)]


def run(count: int, quick: bool) -> dict:
    """The record of one process."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}={count}".strip()
    command = [sys.executable, "-m", "benchmarks.parts.devices", *(["quick"] if quick else [])]
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{count} devices: {done.stderr[-2000:]}")
    return {"name": f"devices/{count}", "kind": "devices", "devices": count} | json.loads(done.stdout.splitlines()[-1])


def step_on_all(quick: bool) -> dict:
    """Compiles the step over all devices and runs it a few times."""
    import jax
    import jax.numpy as jnp

    from benchmarks import counting
    from benchmarks.parts.faces import smiles
    from promptgen_jax import devices
    from promptgen_jax.training import TrainConfig
    from promptgen_jax.training.config import make_objective
    from promptgen_jax.training.optimizer import make_optimizer
    from promptgen_jax.training.train import train_step

    ebm, flow, params = smiles()
    batch, kl_batch = (8, 16) if quick else (32, 1024)
    config, mesh = TrainConfig(num_steps=100, batch_size=batch, kl_batch_size=kl_batch), devices.data_mesh()
    optimizer = make_optimizer(learning_rate=1e-3, num_steps=config.num_steps)
    state = {
        "step": jnp.zeros((), jnp.int32),
        "params": params,
        "opt_state": optimizer.init(params),
        "beta": {},
        "best": params,
        "best_loss": jnp.float32(jnp.inf),
    }
    state, ebm, flow = (devices.replicate(tree, mesh) for tree in (state, ebm, flow))
    options = {"objective": make_objective(config, mesh), "optimizer": optimizer, "config": config}
    traced = jax.jit(functools.partial(train_step, **options)).trace(state, ebm, flow)
    compiled = traced.lower().compile()
    losses = []
    for _ in range(STEPS):
        state, metrics = compiled(state, ebm, flow)
        losses.append(float(metrics["loss"]))
    return {
        "about": f"the smile, batch {batch} and {kl_batch:,} noise vectors for the terms without an image",
        "losses": losses,
        "messages": counting.messages(compiled),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "gflop": 1e-9 * compiled.cost_analysis()["flops"],
        **counting.memory(compiled),
    }


if __name__ == "__main__":
    print(json.dumps(step_on_all("quick" in sys.argv)))
