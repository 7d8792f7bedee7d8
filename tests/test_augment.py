"""Augmentation and CLIP's resize against the official code, and against themselves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import official
import pytest

from promptgen_jax.ops import augment, resample

DIFFAUGMENT, CLIP = official.load_golden("diffaugment"), official.load_golden("clip_preprocess")
CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


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


def with_gradient(function, images):
    """function(images) and the gradient of sum(outputs * w), w the golden weighting over (..., 3, H, W)."""

    @jax.jit
    def run(images):
        outputs, pullback = jax.vjp(function, images)
        shape = (*outputs.shape[:-3], 3, *outputs.shape[-3:-1])
        weighting = np.cos(np.arange(np.prod(shape)) * 0.01).reshape(shape).astype(np.float32)
        return outputs, pullback(jnp.moveaxis(weighting, -3, -1))[0]

    return run(images)


# --- the resize of CLIP's preprocessing ------------------------------------------------------------------------------

# case: which formula image, side
CLIP_CASES = {
    **{"out_64": (0, 64), "out_256": (0, 256), "out_1024": (0, 1024)},
    **{"out2_64": (3, 64), "out2_128": (2, 128), "out2_512": (1, 512)},
}
# PyTorch's float32 positions: one unit in the last place grows with the side (and is divided by CLIP_STD)
PLAIN_TOLERANCE = {64: 3e-5, 128: 3e-5, 256: 6e-5, 512: 1e-4, 1024: 2e-4}


@pytest.mark.parametrize("side", [64, 256, 1024])
def test_formula_image_clip_preprocess(side):
    corner = np.moveaxis(formula_image(0, side)[:8, :8], -1, 0)
    np.testing.assert_allclose(corner, CLIP[f"in_{side}_corner"], atol=1e-7)


@pytest.mark.parametrize("antialias", [False, True], ids=["plain", "antialias"])
@pytest.mark.parametrize("case", CLIP_CASES)
def test_parity_clip_preprocess(case, antialias):
    index, side = CLIP_CASES[case]

    def preprocess(images):
        return (resample.resize_bicubic(images, 224, antialias=antialias) - CLIP_MEAN) / CLIP_STD

    outputs, gradient = with_gradient(preprocess, formula_images(index, side=side))
    name = f"{case}_{'antialias' if antialias else 'plain'}"
    assert_stored(CLIP, name, outputs[0], 3e-5 if antialias else PLAIN_TOLERANCE[side])
    if any(key.startswith(f"{name}_grad") for key in CLIP):
        assert_stored(CLIP, f"{name}_grad", gradient[0], 0.0, relative=3e-4)
    else:
        assert case == "out2_64"


def test_every_output_of_clip_preprocess_is_compared():
    names = {key.partition("_plain")[0].partition("_antialias")[0] for key in CLIP if key.startswith("out")}
    assert names == set(CLIP_CASES)


# --- DiffAugment -----------------------------------------------------------------------------------------------------


def draws_of(golden_prefix, image_size, num_views, *names, uniform=None, each_its_own_image=True):
    """Golden draws of the named operations as `Draws`, the others neutral."""
    draws = augment.draw(jax.random.key(0), num_images=1, num_views=num_views, image_size=image_size, policy="")
    fields = {
        "brightness": ("u_brightness",),
        "saturation": ("u_saturation",),
        "contrast": ("u_contrast",),
        "translation": ("t_rows", "t_cols"),
        "cutout": ("c_rows", "c_cols"),
    }
    ours = {"u_": "", "t_": "shift_", "c_": "cutout_"}
    for name in names:
        for stored in fields[name]:
            value = jnp.asarray(DIFFAUGMENT[f"{golden_prefix}{stored}"])[None]
            draws = draws._replace(**{ours[stored[:2]] + stored[2:]: value})
    if uniform is not None:
        draws = draws._replace(side=jnp.full_like(draws.side, augment.resized_side(uniform, image_size)))
    return jax.tree.map(jnp.transpose, draws) if each_its_own_image else draws


def check_diffaugment(name, draws, images, tolerance=4e-6, gradient_tolerance=4e-5):
    views, gradient = with_gradient(lambda images: augment.augmented_views(draws, images, size=None)[:, 0], images)
    assert_stored(DIFFAUGMENT, name, views, tolerance)
    if any(key.startswith(f"{name}_grad") for key in DIFFAUGMENT):
        assert_stored(DIFFAUGMENT, f"{name}_grad", gradient, gradient_tolerance)


COLOUR = ("brightness", "saturation", "contrast")
ALL = (*COLOUR, "translation", "cutout")


@pytest.mark.parametrize("operation", ALL)
def test_parity_diffaugment_operation(operation):
    check_diffaugment(f"out_{operation}", draws_of("in_", 64, 2, operation), formula_images(0, 1, side=64))


@pytest.mark.parametrize("case", range(5))
def test_parity_diffaugment_resize(case):
    uniform = DIFFAUGMENT["in_resize_r"][case]
    assert augment.resized_side(uniform, 64) == DIFFAUGMENT["in_resize_size"][case]
    check_diffaugment(f"out_resize{case}", draws_of("in_", 64, 2, uniform=uniform), formula_images(0, 1, side=64))


def test_parity_diffaugment_policy():
    draws = draws_of("in_", 64, 2, *ALL, uniform=DIFFAUGMENT["in_policy_r"])
    check_diffaugment("out_policy", draws, formula_images(0, 1, side=64))


@pytest.mark.parametrize("operation", [*ALL, "resize", "policy"])
def test_parity_diffaugment_256a(operation):
    names = {"policy": ALL, "resize": ()}.get(operation, (operation,))
    uniform = DIFFAUGMENT["in_256a_r_resize"] if operation in ("policy", "resize") else None
    draws = draws_of("in_256a_", 256, 2, *names, uniform=uniform)
    check_diffaugment(f"out_256a_{operation}", draws, formula_images(2, 3, side=256))


def test_parity_diffaugment_256b():
    draws = draws_of("in_256b_", 256, 2, *ALL, uniform=DIFFAUGMENT["in_256b_r_resize"])
    check_diffaugment("out_256b_policy", draws, formula_images(2, 3, side=256))


def test_parity_diffaugment_50_views():
    draws = draws_of("in2_", 64, 50, *ALL, uniform=DIFFAUGMENT["in2_r_resize"], each_its_own_image=False)
    images = formula_images(4, side=64)
    views, gradient = with_gradient(lambda images: augment.augmented_views(draws, images, size=None)[0], images)
    assert_stored(DIFFAUGMENT, "out2_policy", views, 4e-6)
    assert_stored(DIFFAUGMENT, "out2_policy_last", views[-1], 4e-6)
    assert_stored(DIFFAUGMENT, "out2_policy_grad", gradient[0], 4e-5 * 12)
