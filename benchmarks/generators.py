"""What each generator costs: parameters, operations and memory of an image and of a training gradient, and seconds.

    python -m benchmarks.generators [dcgan_digiface nvae_ffhq256 ...] [--batch 2] [--repeats 2] [--longest 400]
                                    [--remat_from 256]

Networks have their published sizes and random weights. GFLOP are those of matrix products and convolutions, two a
multiplication with addition, counted in what the traced program needs, with every round of its loops; a gradient's
include what is computed again on the way back. The gradient is that of reverse KL in the paper's flow, with a control
that costs nothing. Memory is what the compiled program of a whole batch holds beyond its arguments, the weights of the
generator and of the flow; kept is what of it the way back through the generator waits for, as the traced program says
it, on any device. `--remat_from` is an option of StyleGAN2. Seconds, an image, are the best of the repeats, of the
processor on CPUs; what takes more than `--longest` GFLOP a batch is not run. What was measured, and on which machine:
docs/generators.md.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp

import promptgen_jax as pg
from benchmarks.counting import gflop, kept_mib
from benchmarks.machine import processor
from promptgen_jax.generators import biggan, dcgan, diffae, flame, nvae, stylegan2, stylenerf
from promptgen_jax.models import network
from promptgen_jax.objectives import ReverseKL
from promptgen_jax.types import Prior

STYLEGAN2 = (512, 512, 512, 512, 512, 256, 128, 64, 32)  # rosinality's, at 4, 8, ... pixels
BIGGAN = {
    128: (*[2048] * 4, 1024, 1024, 512, 512, 256, 256, 128),
    256: (*[2048] * 4, *[1024] * 4, 512, 512, 256, 256, 128),
    512: (*[2048] * 4, *[1024] * 4, 512, 512, 256, 256, 128, 128, 128),
}
DIFFAE = {128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4)}


def _biggan(size):
    module = biggan.biggan.BigGAN(BIGGAN[size], (False, True) * (len(BIGGAN[size]) // 2), attention_position=8)
    return biggan.BigGAN, module, (128, 128), size


def _nvae(size, channels, groups):
    module = nvae.nvae.NVAE(groups, channels)
    return nvae.NVAE, module, (module.group_sizes[0],), size, {"control_groups": 1}


# adapter, network, sizes of the prior's blocks, pixels, options of the adapter
GENERATORS = {
    "dcgan_digiface": (dcgan.DCGAN, dcgan.dcgan.DCGAN(), (100,), 64),
    "stylegan2_church": (stylegan2.StyleGAN2, stylegan2.stylegan2.StyleGAN2(STYLEGAN2[:7]), (512,), 256),
    "stylegan2_ffhq": (stylegan2.StyleGAN2, stylegan2.stylegan2.StyleGAN2(STYLEGAN2), (512,), 1024),
    "biggan_deep_128": _biggan(128),
    "biggan_deep_256": _biggan(256),
    "biggan_deep_512": _biggan(512),
    "diffae_ffhq128": (diffae.DiffAE, diffae.diffae.DiffAE(128, DIFFAE[128]), (512,), 128),
    "diffae_ffhq256": (diffae.DiffAE, diffae.diffae.DiffAE(256, DIFFAE[256]), (512,), 256),
    "stylenerf_ffhq1024": (
        stylenerf.StyleNeRF,
        stylenerf.stylenerf.StyleNeRF((1024, 512, 256, 128, 64)),
        (512,),
        1024,
    ),
    "nvae_celeba64": _nvae(64, 512, (5, 10, 20)),
    "nvae_ffhq256": _nvae(256, 960, (4, 4, 4, 8, 16)),
    "flame": (flame.FlameMeshes, flame.flame.FLAME(), (flame.IDENTITY,), 1),
}


def make(name):
    """An adapter whose weights are shapes."""
    adapter, module, blocks, size, *options = GENERATORS[name]
    dim = flame.IDENTITY + flame.REST if name == "flame" else sum(blocks)
    dim = sum(module.group_sizes) if adapter is nvae.NVAE else dim
    weights = network.expected_tree(module, jax.ShapeDtypeStruct((1, dim), jnp.float32))
    fields = {"weights": weights, "prior": Prior.standard(*blocks), "module": module, "image_size": size}
    return adapter(**fields, name=name, **(options[0] if options else {}))


def measure(name, options):
    """Prints one row."""
    generator, key = make(name), jax.random.key(0)
    if options.remat_from is not None:
        generator = generator.replace(remat_from=options.remat_from)
    control = pg.FunctionControl(lambda images: jnp.mean((images - 0.5) ** 2, axis=(1, 2, 3)))
    flow, params = pg.init_flow(key, generator.prior, architecture="allinone", num_layers=8, hidden_dim=256)
    loss = ReverseKL(batch_size=options.batch)

    def image(generator, key, params, flow):
        del params, flow
        return generator(key, generator.prior.sample(key, options.batch))

    def gradient(generator, key, params, flow):
        return jax.grad(lambda params: loss(params, key, pg.LatentEBM(generator, (control,)), flow)[0])(params)

    fill = lambda leaf: (0.05 * jnp.abs(jax.random.normal(key, leaf.shape))).astype(leaf.dtype)  # noqa: E731
    cells = [f"{sum(leaf.size for leaf in jax.tree.leaves(generator.weights)) / 1e6:8.1f} M"]
    for function in (image, gradient):
        arguments = (generator, key, params, flow)
        traced = jax.jit(function).trace(*arguments)
        operations = gflop(traced)  # no gradient by the weights
        compiled = traced.lower().compile()
        seconds = "not run"
        if operations <= options.longest:
            filled = generator.replace(weights=jax.tree.map(fill, generator.weights))
            best = best_time(compiled, (filled, *arguments[1:]), options.repeats)
            seconds = f"{best / options.batch:.3f} s"
        memory = compiled.memory_analysis().temp_size_in_bytes
        cells.append(f"{operations / options.batch:9.2f} GFLOP {memory / 2**20:7.0f} MiB {seconds:>9s}")
    z = jax.ShapeDtypeStruct((options.batch, generator.prior.dim), jnp.float32)
    cells.append(f"{kept_mib(lambda z, generator: generator(key, z), z, generator):7.0f} MiB kept")
    print(f"{name:20s}" + "  ".join(cells), flush=True)


def best_time(compiled, arguments, repeats):
    """Seconds of the fastest call after the first, of the processor on CPUs, where other work then counts little."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    seconds = []
    for _ in range(1 + repeats):
        start = clock()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(clock() - start)
    return min(seconds[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=[*GENERATORS])
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--longest", type=float, default=400)
    parser.add_argument("--remat_from", type=int)
    options = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {processor()}, batch {options.batch}")
    print(f"{'':20s}{'weights':>10s}{'image':>20s}{'':24s}{'gradient':>10s}")
    for name in options.names:
        measure(name, options)


if __name__ == "__main__":
    main()
