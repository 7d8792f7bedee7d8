"""Pictures by a formula, which the official code saw too, and how golden data keep what it made of them."""

import functools

import jax.numpy as jnp
import numpy as np


@functools.cache
def formula_image(index, side):
    """(side, side, 3) float32 in [0, 1]; its zone plate comes close to the pixel frequency."""
    v, u = np.meshgrid(*[(np.arange(side) + 0.5) / side] * 2, indexing="ij")
    planes = [
        0.5
        + 0.22 * np.sin(2 * np.pi * ((3 + index + 2 * c) * u + 0.7 * v) + 0.9 * index + c)
        + 0.18 * np.cos(2 * np.pi * ((5 + 2 * index + c) * v - 0.4 * u) + 0.5 * c)
        + 0.10 * np.sin(np.pi * 0.35 * side * (u * u + v * v) * (1 + 0.2 * c) + index)
        for c in range(3)
    ]
    return np.stack(planes, axis=-1).astype(np.float32)


def formula_images(*indices, side):
    return jnp.stack([formula_image(index, side) for index in indices])


def assert_stored(golden, name, got, tolerance, *, relative=0.0):
    """Compares (..., H, W, 3) with every form in which the golden data keep an array of (..., 3, H, W).

    The tolerance is absolute, plus `relative` times the largest stored value.
    """
    got = np.moveaxis(np.asarray(got), -1, -3)
    forms = {form: golden[f"{name}{form}"] for form in ("", *FORMS) if f"{name}{form}" in golden}
    assert forms, f"no golden array {name}"
    for form, expected in forms.items():
        ours = FORMS[form](got, expected.shape[-1]) if form else got
        assert ours.shape == expected.shape, f"{name}{form}: {ours.shape} instead of {expected.shape}"
        error = np.max(np.abs(ours - expected))
        print(f"{name}{form}: {error:.1e} of {np.max(np.abs(expected)):.1e}")
        assert error < tolerance + relative * np.max(np.abs(expected)), f"{name}{form}: error {error:.2e}"


def pool(images, size):
    side = images.shape[-1]
    blocks = np.float64(images).reshape(*images.shape[:-2], size, side // size, size, side // size)
    return blocks.mean(axis=(-3, -1))


def crop(images, size):
    start = (images.shape[-1] - size) // 2
    return images[..., start : start + size, start : start + size]


FORMS = {
    "_pool": pool,
    "_crop": crop,
    "_stats": lambda images, _: np.stack([np.float64(images).mean((-1, -2)), np.float64(images).std((-1, -2))]),
    "_topleft": lambda images, size: images[..., :size, :size],
    "_botright": lambda images, size: images[..., -size:, -size:],
}
