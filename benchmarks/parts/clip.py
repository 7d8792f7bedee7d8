"""The CLIP energy of one image and its gradient, ViT-B/32 with seeded weights, 50 views."""

from __future__ import annotations

import functools

from benchmarks.case import Case, Side, compiled, seeded

VIT_B32 = {
    "embed_dim": 512,
    "image_size": 224,
    "patch_size": 32,
    "width": 768,
    "layers": 12,
    "heads": 12,
}
SMALL = {"embed_dim": 16, "image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "heads": 2}


def cases(quick: bool) -> list[Case]:
    """One a picture size."""
    return [
        Case(
            name=f"clip/{side}",
            title=f"CLIP energy and gradient, {4 if quick else 50} views, {side} px",
            ours=functools.partial(ours, side, quick),
            other=functools.partial(torch, side, quick),
        )
        for side in ((24,) if quick else (64, 256, 1024))
    ]


def control(quick: bool):
    """The control, and the key that it is called with."""
    import jax
    import jax.numpy as jnp

    from promptgen_jax.controls.clip import ClipControl
    from promptgen_jax.models import clip, network
    from promptgen_jax.ops import augment

    options = SMALL if quick else VIT_B32
    module = clip.VisionTower(**options)
    side = module.image_size
    shapes = network.expected_tree(module, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))
    tower = network.Network(weights=seeded(shapes), module=module, name="seeded", checksum="", attributes=())
    text = clip.normalise(jax.random.normal(jax.random.key(1), (2, options["embed_dim"])))
    return ClipControl(
        network=tower,
        text_features=text,
        text_weights=jnp.array([0.7, 0.3]),
        weight=jnp.float32(500),
        name="text",
        num_augmentations=4 if quick else 50,
        policy=augment.POLICY,
        antialias=False,
        chunk=2 if quick else 10,
    )


def picture(side: int):
    """One image (1, side, side, 3)."""
    import jax

    return jax.random.uniform(jax.random.key(2), (1, side, side, 3))


def ours(side: int, quick: bool) -> Side:
    """The control of the library."""
    import jax
    import jax.numpy as jnp

    from promptgen_jax.types import Sample

    z = jnp.zeros((1, 1))  # not used: the energy is one of images

    def energy_and_gradient(control, key, images):
        energy, gradient = jax.value_and_grad(lambda images: jnp.sum(control(key, Sample(images, z))))(images)
        return {"energy": energy, "gradient": gradient}

    return compiled(energy_and_gradient, control(quick), jax.random.key(3), picture(side))


def torch(side: int, quick: bool) -> Side:
    """The twin."""
    import jax

    from benchmarks.twins.clip import Energy
    from benchmarks.twins.tensors import channels_first, channels_last

    made = control(quick)
    energy = Energy(made, draws(made, jax.random.key(3), 1, side))
    images = channels_first(picture(side)).requires_grad_()

    def run():
        images.grad = None
        value = energy(images).sum()
        value.backward()
        return value, images.grad

    return Side(run, numbers=lambda found: {"energy": found[0].detach().numpy(), "gradient": channels_last(found[1])})


def draws(control, key, count: int, side: int):
    """What a control draws under a key for so many images."""
    from promptgen_jax.ops import augment

    views = control.num_augmentations
    return augment.draw(key, num_images=count, num_views=views, image_size=side, policy=control.policy)
