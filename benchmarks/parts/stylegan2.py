"""StyleGAN2 with seeded weights and stored noise: images, and the gradient by the latents; then a step with CLIP."""

from __future__ import annotations

import functools

from benchmarks.case import Case, Side, compiled, seeded, trained
from benchmarks.parts import clip
from benchmarks.parts.faces import loss_and_gradient, noise_and_key, twin_step

CHANNELS = (512, 512, 512, 512, 512, 256, 128, 64, 32)  # at 4, 8, ... pixels
SIZES = {"256": (CHANNELS[:7], 512, 8, 2), "1024": (CHANNELS, 512, 8, 1)}  # channels, D, mapping layers, batch
SMALL = {"16": ((8, 8, 4), 8, 2, 2)}


def cases(quick: bool) -> list[Case]:
    """Forward and gradient of each size, and the whole step of the smaller one."""
    found = []
    for name, size in (SMALL if quick else SIZES).items():
        for gradient in (False, True):
            found.append(
                Case(
                    name=f"stylegan2/{name}-{'gradient' if gradient else 'forward'}",
                    title=f"StyleGAN2-{name}, batch {size[-1]}: {'gradient of z' if gradient else 'forward'}",
                    ours=functools.partial(ours, size, gradient),
                    other=functools.partial(torch, size, gradient),
                )
            )
    name, size = next(iter((SMALL if quick else SIZES).items()))
    step = Case(
        name=f"stylegan2/{name}-clip-step",
        title=f"full step StyleGAN2-{name} + CLIP, batch {size[-1]}, {4 if quick else 50} views",
        ours=functools.partial(our_step, size, quick),
        other=functools.partial(torch_step, size, quick),
    )
    return [*found, step]


def generator(size):
    """The generator of a size."""
    import jax
    import jax.numpy as jnp

    from promptgen_jax.generators.stylegan2 import StyleGAN2
    from promptgen_jax.models import network, stylegan2
    from promptgen_jax.types import Prior

    channels, dim, layers, _ = size
    module = stylegan2.StyleGAN2(channels, style_dim=dim, mapping_layers=layers)
    weights = seeded(network.expected_tree(module, jax.ShapeDtypeStruct((1, dim), jnp.float32)))
    return StyleGAN2(
        weights=weights,
        prior=Prior.standard(dim),
        module=module,
        name="seeded",
        image_size=4 << (len(channels) - 1),
        noise="const",
    )


def inputs(size):
    """Latents (B, D), and a cotangent (B, S, S, 3) of the images."""
    import jax

    side = 4 << (len(size[0]) - 1)
    return (
        jax.random.normal(jax.random.key(1), (size[-1], size[1])),
        jax.random.normal(jax.random.key(2), (size[-1], side, side, 3)) / side,
    )


def ours(size, gradient: bool) -> Side:
    """The generator of the library."""
    import jax

    def forward(generator, z, _):
        return {"images": generator(jax.random.key(0), z)}

    def backward(generator, z, cotangent):
        images, pullback = jax.vjp(lambda z: generator(jax.random.key(0), z), z)
        return {"images": images, "gradient": pullback(cotangent)[0]}

    return compiled(backward if gradient else forward, generator(size), *inputs(size))


def torch(size, gradient: bool) -> Side:
    """The twin."""
    import torch

    from benchmarks.twins.stylegan2 import StyleGAN2
    from benchmarks.twins.tensors import channels_first, channels_last, tensors

    made = generator(size)
    twin, (z, cotangent) = StyleGAN2(made.weights, made.module), inputs(size)
    z, cotangent = tensors({"z": z})["z"].requires_grad_(gradient), channels_first(cotangent)

    def forward():
        with torch.inference_mode():
            return {"images": twin(z)}

    def backward():
        z.grad = None
        images = twin(z)
        images.backward(cotangent)
        return {"images": images, "gradient": z.grad}

    def numbers(found):
        rest = {"gradient": found["gradient"].numpy()} if gradient else {}
        return {"images": channels_last(found["images"])} | rest

    return Side(backward if gradient else forward, numbers=numbers)


def target(size, quick: bool):
    """A text asked of the generator, in the paper's flow."""
    import jax

    import promptgen_jax as pg

    made = generator(size)
    flow, params = pg.init_flow(jax.random.key(4), made.prior, architecture="allinone", num_layers=8, hidden_dim=256)
    return pg.LatentEBM(made, (clip.control(quick),)), flow, trained(params)


def our_step(size, quick: bool) -> Side:
    """Loss of reverse KL and its gradient by the flow."""
    import jax

    ebm, flow, params = target(size, quick)
    return compiled(functools.partial(loss_and_gradient, size[-1]), params, jax.random.key(5), ebm, flow)


def torch_step(size, quick: bool) -> Side:
    """The twin."""
    from benchmarks.twins.clip import Energy
    from benchmarks.twins.stylegan2 import StyleGAN2

    ebm, flow, params = target(size, quick)
    (control,) = ebm.controls
    eps, key = noise_and_key(ebm, size[-1], control.name)
    energy = Energy(control, clip.draws(control, key, size[-1], ebm.generator.image_size))
    generator = StyleGAN2(ebm.generator.weights, ebm.generator.module)
    return twin_step(flow, params, eps, lambda z: float(control.weight) * energy(generator(z)))
