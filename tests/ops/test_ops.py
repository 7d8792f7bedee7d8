"""Resizing, convolution and pooling against pixel by pixel rules and against XLA's own."""

import functools
import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from promptgen_jax.ops import convolution, depthwise, resample


def brute_force_resize(images, size):
    """The rule pixel by pixel: source = destination · in / out, floor and floor + 1 clamped at the border."""
    batch, height, width, channels = images.shape
    out = np.zeros((batch, size, size, channels))
    for i, j in itertools.product(range(size), repeat=2):
        y, x = i * height / size, j * width / size
        top, left = int(np.floor(y)), int(np.floor(x))
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        upper = images[:, top, left] * (1 - (x - left)) + images[:, top, right] * (x - left)
        lower = images[:, bottom, left] * (1 - (x - left)) + images[:, bottom, right] * (x - left)
        out[:, i, j] = upper * (1 - (y - top)) + lower * (y - top)
    return out


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 14), (9, 5, 7), (16, 16, 5), (6, 6, 6), (1, 3, 4)])
def test_resize_matches_brute_force(height, width, size):
    images = np.random.default_rng(0).uniform(size=(2, height, width, 3)).astype(np.float32)
    got = resample.resize_bilinear_legacy(jnp.asarray(images), size)
    np.testing.assert_allclose(got, brute_force_resize(images, size), atol=1e-6)


def assert_same_values_and_gradients(ours, reference, arguments, atol):
    """Compares the functions, and the gradients of a curved function of them with respect to all arguments."""

    @functools.partial(jax.jit, static_argnums=0)
    def both(function, *arguments):
        outputs, pullback = jax.vjp(function, *arguments)
        return outputs, pullback(jnp.cos(outputs))

    for got, expected in zip(
        jax.tree.leaves(both(ours, *arguments)), jax.tree.leaves(both(reference, *arguments)), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=atol)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (5, 1)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (2, 1)])
def test_depthwise_matches_lax(height, width, size, stride):
    images = jax.random.normal(jax.random.key(0), (2, height, width, 4))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 4))

    def reference(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    ours = functools.partial(depthwise.depthwise_conv, stride=stride, shifted=True)
    # sums of up to 160 products of order 1
    assert_same_values_and_gradients(ours, reference, (images, kernel), atol=2e-5)


def test_depthwise_second_derivative():
    images = jax.random.normal(jax.random.key(0), (1, 4, 4, 2))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 1, 2))

    def curvature(shifted):
        def total(images):
            return jnp.sum(depthwise.depthwise_conv(images, kernel, stride=2, shifted=shifted) ** 3)

        return jax.jit(jax.grad(lambda images: jnp.sum(jax.grad(total)(images) ** 2)))(images)

    np.testing.assert_allclose(curvature(True), curvature(False), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "stride"), [((3, 3, 4, 1), 1), ((3, 3, 1, 5), 1), ((5, 5, 1, 4), 2), ((7, 7, 1, 4), 2), ((3, 3, 1, 4), 3)]
)
def test_depthwise_refuses(shape, stride):
    with pytest.raises(ValueError, match="expected"):
        depthwise.depthwise_conv(jnp.zeros((1, 8, 8, 4)), jnp.zeros(shape), stride=stride)


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 10), (5, 3)])
def test_max_pool_matches_lax(height, width, padding, window):
    images = jax.random.normal(jax.random.key(0), (2, height, width, 4))
    assert_same_values_and_gradients(
        functools.partial(depthwise.max_pool, window=window, padding=padding),
        lambda images: nn.max_pool(images, (window, window), (2, 2), padding),
        (images,),
        atol=1e-6,
    )


def test_max_pool_gives_ties_once():
    gradient = jax.grad(lambda images: jnp.sum(depthwise.max_pool(images, window=3)))(jnp.ones((1, 6, 6, 1)))
    assert float(jnp.sum(gradient)) == 9


CONVOLUTIONS = {  # kernel, stride, padding, dilation
    "3x3": (3, 1, ((1, 1), (1, 1)), 1),
    "1x1": (1, 1, ((0, 0), (0, 0)), 1),
    "stride": (7, 2, ((3, 3), (3, 3)), 1),
    "uneven_padding": (3, 2, ((0, 1), (1, 0)), 1),
    "strided_1x1": (1, 2, ((0, 0), (0, 0)), 1),
    "strided_by_3": (2, 3, ((0, 1), (1, 0)), 1),
    "dilation": (3, 1, ((2, 2), (2, 2)), 2),
    "uneven_dilation": (4, 1, ((1, 3), (2, 0)), 2),
    "dilation_by_3": (4, 1, ((2, 3), (3, 1)), 3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("height", "width", "read", "made"), [(9, 8, 3, 5), (7, 10, 5, 3), (8, 8, 5, 5)])
def test_convolution_matches_lax(name, height, width, read, made):
    size, stride, padding, dilation = CONVOLUTIONS[name]
    images = jax.random.normal(jax.random.key(0), (2, height, width, read))
    kernel = jax.random.normal(jax.random.key(1), (size, size, read, made))

    def reference(images, kernel):
        options = {"lhs_dilation": (dilation, dilation), "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        return lax.conv_general_dilated(images, kernel, (stride, stride), padding, **options)

    ours = functools.partial(convolution.convolve, stride=stride, padding=padding, dilation=dilation)
    # sums of up to 245 products of order 1
    assert_same_values_and_gradients(ours, reference, (images, kernel), atol=1e-4)


FROZEN = {
    "depthwise": lambda images, kernel: depthwise.depthwise_conv(images, kernel[:, :, :1], shifted=True),
    "depthwise_stride": lambda images, kernel: depthwise.depthwise_conv(
        images, kernel[:, :, :1], stride=2, shifted=True
    ),
    "convolution": lambda images, kernel: convolution.convolve(images, kernel, padding=((1, 1), (1, 1))),
    "convolution_stride": lambda images, kernel: convolution.convolve(images, kernel, stride=2),
}


@pytest.mark.parametrize("name", FROZEN)
def test_frozen_kernels_cost_no_gradient_of_theirs(name):
    """The gradient by images alone is that of both, in loops and under `vmap` too, from a smaller program."""
    images, kernel = (
        jax.random.normal(jax.random.key(0), (2, 7, 8, 4)),
        jax.random.normal(jax.random.key(1), (3, 3, 4, 4)),
    )

    def total(images, kernel):
        return jnp.sum(jnp.sin(FROZEN[name](images, kernel)))

    both = jax.grad(total, argnums=(0, 1))
    expected, _ = both(images, kernel)
    np.testing.assert_array_equal(jax.grad(total)(images, kernel), expected)
    mapped = jax.vmap(jax.grad(lambda image, kernel: total(image[None], kernel)), (0, None))(images, kernel)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)
    looped = lax.scan(lambda x, _: (jax.grad(total)(x, kernel), None), images, length=1)[0]
    np.testing.assert_allclose(looped, expected, atol=1e-6)
    counts = [len(jax.make_jaxpr(function)(images, kernel).eqns) for function in (jax.grad(total), both)]
    assert counts[0] < counts[1]


def test_convolution_of_half_precision_is_that_of_the_kernels():
    images = jax.random.normal(jax.random.key(0), (1, 8, 8, 4), jnp.bfloat16)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 5))
    got, pullback = jax.vjp(lambda images: convolution.convolve(images, kernel), images)
    np.testing.assert_array_equal(got, convolution.convolve(images.astype(jnp.float32), kernel))
    assert pullback(got)[0].dtype == jnp.bfloat16


def test_second_derivatives_of_convolution():
    """By reverse mode over reverse mode."""
    images, kernel = jax.random.normal(jax.random.key(0), (1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)) / 9

    def energy(convolve):
        return lambda images: jnp.sum(jnp.tanh(convolve(images)))

    ours = energy(lambda images: convolution.convolve(images, kernel, stride=2, padding=((1, 1), (1, 1))))
    reference = energy(
        lambda images: lax.conv_general_dilated(
            images, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    np.testing.assert_allclose(jax.jacrev(jax.grad(ours))(images), jax.hessian(reference)(images), atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends take kernels in any order")
@pytest.mark.parametrize("name", sorted(CONVOLUTIONS.keys() - {"1x1"}))  # which XLA makes a matrix product
def test_convolution_keeps_its_order_in_loops(name):
    """XLA's fast convolution takes kernels as HWIO, into which XLA itself brings them outside of loops only."""
    size, stride, padding, dilation = CONVOLUTIONS[name]

    def total(images, kernel):
        return jnp.sum(convolution.convolve(images, kernel, stride=stride, padding=padding, dilation=dilation) ** 2)

    def descend(images, kernel):
        return lax.scan(lambda x, _: (x - jax.grad(total)(x, kernel), None), images, length=3)[0]

    text = jax.jit(descend).lower(jnp.ones((1, 32, 32, 6)), jnp.ones((size, size, 6, 5))).compile().as_text()
    assert set(re.findall(r"dim_labels=(\w+)", text)) == {"b01f_01io"}
