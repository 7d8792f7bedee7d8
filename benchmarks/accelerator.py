"""Everything for one accelerator in under ten minutes: `python -m benchmarks --accelerator`.

Networks have their published sizes and seeded weights. "float32" is that to the last bit; "tf32" is what the same
program becomes where the accelerator may round the factors of its products to 10 bits, JAX's default there; "bfloat16"
rounds them to 7. Both are the option `precision` of generators and controls. All programs are compiled anew.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

SECONDS, CALLS = 540, 5
ROUNDING = {"float32": "highest", "tf32": "default", "bfloat16": "default"}  # by precision, of matrix products
BATCHES = (1, 4, 16)
GENERATORS = ("dcgan_digiface", "stylegan2_church", "stylegan2_ffhq", "biggan_deep_256", "nvae_celeba64")
SLOW = ("diffae_ffhq128", "stylenerf_ffhq1024")
NONE_HERE = (
    "accelerator: JAX sees none here, only CPUs, so nothing was measured. Run it on a machine with a GPU or TPU."
)


def measure(quick: bool = False, say: Callable[[str], None] = print) -> list[dict]:
    """Records of all programs in the order of `programs`; what does not fit into the time is named and left out.

    Args:
      quick: only the smallest, one call each.
      say: takes the sentence if there is no accelerator, and what was left out.
    """
    import jax

    if jax.default_backend() == "cpu":
        say(NONE_HERE)
        return []
    return run(quick, say)


def run(quick: bool, say: Callable[[str], None]) -> list[dict]:
    """As `measure`, on whatever there is."""
    import jax

    from benchmarks import machine

    jax.config.update("jax_enable_compilation_cache", False)
    started, found, left_out = time.monotonic(), [], []
    small = {"rows": 256, "numbers": 1 << 16} if quick else {"rows": 8192, "numbers": 1 << 28}
    peaks = {}
    for precision, rounding in ROUNDING.items():
        with jax.default_matmul_precision(rounding):
            peaks[precision] = machine.best("bfloat16" if precision == "bfloat16" else "float32", **small)
        found.append({"name": f"accelerator/peak-{precision}", "kind": "accelerator-peak", **peaks[precision]})
    for name, precision, batch, make in programs(quick):
        if time.monotonic() - started > SECONDS:
            left_out.append(f"{name} {precision} {batch}")
            continue
        with jax.default_matmul_precision(ROUNDING[precision]):
            record = timed(*make(), calls=1 if quick else CALLS)
        share = record["gflop"] / record["seconds"] / peaks[precision]["gflops"]
        about = {"program": name, "precision": precision, "batch": batch, "device": jax.devices()[0].device_kind}
        title = f"accelerator/{name}-{precision}-{batch}"
        found.append({"name": title, "kind": "accelerator", **about, **record, "share": share})
        say(f"{title:52s}{record['seconds']:10.4f} s {share:6.1%} of the peak {record['temporary_mib']:9.0f} MiB")
    if left_out:
        say(f"accelerator: no time was left for {', '.join(left_out)}.")
    return found


def programs(quick: bool) -> Iterator[tuple[str, str, int, Callable[[], tuple[Callable, tuple]]]]:
    """(name, precision, images, maker of a function and its arguments) of each program, smallest batches last."""
    for precision in ROUNDING:
        if made := smile_step(precision):
            yield "smile step", precision, 4 if quick else 256, lambda made=made: step(made, 4 if quick else 256)
            yield "sampling", precision, 4 if quick else 256, lambda made=made: images(made, 4 if quick else 256)
    generators = GENERATORS[:1] if quick else (*GENERATORS, *SLOW)
    for batch in BATCHES[:1] if quick else BATCHES[::-1]:
        for precision in ROUNDING:
            for name in generators[: None if batch == BATCHES[-1] else len(GENERATORS)]:
                if part := in_precision(generator(name), precision):
                    yield f"{name} gradient", precision, batch, lambda part=part, batch=batch: gradient(part, batch)
            if not quick and (made := text_step(precision)):
                yield "text step", precision, batch, lambda made=made, batch=batch: step(made, batch)


def in_precision(part: Any, precision: str) -> Any:
    """A generator that computes in it, or a control whose network does; None if it does not take that precision."""
    from promptgen_jax.models import network

    names = {field.name for field in dataclasses.fields(part)}
    try:
        if "precision" in names:
            return network.in_precision(part, precision)
        return part.replace(network=network.in_precision(part.network, precision))
    except ValueError:
        return None


@functools.cache
def generator(name: str) -> Any:
    """Of its published size, with seeded weights, drawn once."""
    from benchmarks import generators
    from benchmarks.case import seeded

    made = generators.make(name)
    return made.replace(weights=seeded(made.weights))


def gradient(part: Any, batch: int) -> tuple[Callable, tuple]:
    """Images, and the gradient of their mean square by the latents."""
    import jax
    import jax.numpy as jnp

    def mean_square(z: Any, part: Any, key: Any) -> Any:
        return jnp.mean(part(key, z).astype(jnp.float32) ** 2)

    return jax.value_and_grad(mean_square), (part.prior.sample(jax.random.key(0), batch), part, jax.random.key(1))


def text_step(precision: str) -> tuple | None:
    """StyleGAN2 of 256 pixels and CLIP ViT-B/32 with 50 views, with the paper's flow; None without the precision."""
    import promptgen_jax as pg
    from benchmarks.parts import clip, stylegan2

    ebm, flow, params = stylegan2.target(stylegan2.SIZES["256"], False)
    made, control = in_precision(ebm.generator, precision), in_precision(clip.control(False), precision)
    return (pg.LatentEBM(made, (control,)), flow, params) if made and control else None


def smile_step(precision: str) -> tuple | None:
    """The shipped faces and the smile classifier; None without the precision."""
    import promptgen_jax as pg
    from benchmarks.parts import faces

    ebm, flow, params = faces.smiles()
    made, control = in_precision(ebm.generator, precision), in_precision(ebm.controls[0], precision)
    return (pg.LatentEBM(made, (control,)), flow, params) if made and control else None


def step(made: tuple, batch: int) -> tuple[Callable, tuple]:
    """Loss of reverse KL and its gradient by the flow."""
    import jax

    from benchmarks.parts.faces import loss_and_gradient

    ebm, flow, params = made
    return functools.partial(loss_and_gradient, batch), (params, jax.random.key(5), ebm, flow)


def images(made: tuple, batch: int) -> tuple[Callable, tuple]:
    """Images of a prompt."""
    import jax

    ebm, flow, params = made

    def sample(params: Any, flow: Any, generator: Any, key: Any) -> Any:
        eps = generator.prior.sample(key, batch)
        return generator(key, flow.forward_and_log_det(params, eps)[0])

    return sample, (params, flow, ebm.generator, jax.random.key(6))


def timed(function: Callable, arguments: tuple, *, calls: int) -> dict:
    """Compiles a function, calls it once to warm up, and takes the median of the calls after."""
    import jax

    from benchmarks.case import compiled

    side = compiled(function, *arguments)
    jax.block_until_ready(side.run())
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        side.run()
        seconds.append(time.perf_counter() - start)
    return {**side.facts, "seconds": statistics.median(seconds), "spread": (max(seconds) - min(seconds)) / max(seconds)}
