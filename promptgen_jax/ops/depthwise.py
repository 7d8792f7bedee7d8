"""Depthwise convolution and max-pooling with TensorFlow's SAME padding, fast on CPUs too.

XLA's own depthwise convolution and the gradient of its window reductions are slow on CPUs; shifted
multiply-adds, nine or 25, which fuse into one loop, are many times faster.
`python -m benchmarks depthwise` measures both.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax


def depthwise_conv(images: jax.Array, kernel: jax.Array, *, stride: int = 1, shifted: bool | None = None) -> jax.Array:
    """Convolves every channel with its own kernel, SAME padding by TensorFlow's rule.

    Args:
      images: (B, H, W, C).
      kernel: (3, 3, 1, C), (5, 5, 1, C) or (7, 7, 1, C).
      stride: 1, or 2 for 3x3 kernels.
      shifted: True for the shifted multiply-adds, which have no forward-mode derivative; False for XLA's convolution;
        None takes the former when the default backend is a CPU.

    Returns:
      (B, ceil(H / stride), ceil(W / stride), C).

    Raises:
      ValueError: another kernel shape or stride.
    """
    channels = images.shape[-1]
    if (kernel.shape, stride) not in [((side, side, 1, channels), 1) for side in (3, 5, 7)] + [
        ((3, 3, 1, channels), 2)
    ]:
        raise ValueError(
            f"depthwise_conv: kernel is {kernel.shape} with stride {stride}; expected (3, 3, 1, {channels}) with "
            f"stride 1 or 2, or (5, 5, 1, {channels}) or (7, 7, 1, {channels}) with stride 1. Store kernels as HWIO."
        )
    if shifted is None:
        shifted = jax.default_backend() == "cpu"
    return _shifted(images, kernel, stride) if shifted else _native(images, kernel, stride)


def max_pool(images: jax.Array, *, window: int, padding: str = "SAME") -> jax.Array:
    """Largest value of each window x window patch at stride 2, (B, H, W, C) to (B, H', W', C), axis after axis.

    The gradient goes to the first of tied values along an axis. There is no forward-mode derivative.

    Args:
      images: (B, H, W, C).
      window: patch size in pixels, 2 or 3; the stride is 2.
      padding: "SAME" (TensorFlow's rule: the odd pixel goes to the end) or "VALID".
    """
    return _max_axis(_max_axis(images, 1, window, padding), 2, window, padding)


def _native(images, kernel, stride):
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(images, kernel, stride):
    weights = lax.split(kernel.reshape(-1, 1, 1, kernel.shape[-1]), [1] * len(kernel) ** 2)
    taps = _taps(images, stride, len(kernel))
    return functools.reduce(jnp.add, (tap * weight for tap, weight in zip(taps, weights, strict=True)))


def _shifted_forward(images, kernel, stride):
    """Keeps the images if there is a gradient by the kernel, which frozen networks have none of; else their shape."""
    kept = images.value if kernel.perturbed else images.value[:0]
    return _shifted(images.value, kernel.value, stride), (kept, kernel.value)


def _shifted_backward(stride, residuals, cotangent):
    images, kernel = residuals
    if stride == 1:
        image_cotangent = _shifted(cotangent, kernel[::-1, ::-1], 1)
    else:
        image_cotangent = _transposed_stride2(cotangent, kernel[:, :, 0], images.shape)
    if not len(images):
        return image_cotangent, None
    sums = [jnp.sum(tap * cotangent, axis=(0, 1, 2)) for tap in _taps(images, stride, len(kernel))]
    return image_cotangent, jnp.stack(sums).reshape(kernel.shape)


_shifted.defvjp(_shifted_forward, _shifted_backward, symbolic_zeros=True)


def _taps(images, stride, size):
    """The shifted images that each entry of a kernel of size x size multiplies, row by row."""
    low_h, high_h, num_h = _same_padding(images.shape[1], size, stride)
    low_w, high_w, num_w = _same_padding(images.shape[2], size, stride)
    # in one go: of rows first and columns then, XLA would keep two padded copies
    padded = jnp.pad(images, ((0, 0), (low_h, high_h), (low_w, high_w), (0, 0)))
    return [_window(padded, corner, (num_h, num_w), stride) for corner in itertools.product(range(size), repeat=2)]


def _transposed_stride2(cotangent, kernel, shape):
    """Gradient (B, H, W, C) with respect to the images of a stride 2 convolution with kernel (3, 3, C).

    Row 2m of the padded images met kernel row 0 in output m and row 2 in output m-1; row 2m+1 met row 1 in output m.
    The four parities of (row, column) are computed apart and interleaved.
    """
    low_h, _, num_h = _same_padding(shape[1], 3, 2)
    low_w, _, num_w = _same_padding(shape[2], 3, 2)
    padded = jnp.pad(cotangent, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def met(i, j):
        """Outputs that met kernel entry (i, j), times that entry."""
        return _window(padded, (1 - i // 2, 1 - j // 2), (num_h + 1, num_w + 1), 1) * kernel[i, j]

    even_even = met(0, 0) + met(0, 2) + met(2, 0) + met(2, 2)
    even_odd = met(0, 1) + met(2, 1)
    odd_even = met(1, 0) + met(1, 2)
    rows = [jnp.stack([even_even, even_odd], axis=3), jnp.stack([odd_even, met(1, 1)], axis=3)]
    whole = jnp.stack(rows, axis=2).reshape(len(cotangent), 2 * num_h + 2, 2 * num_w + 2, shape[3])
    return whole[:, low_h : low_h + shape[1], low_w : low_w + shape[2]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_axis(images, axis, window, padding):
    return functools.reduce(jnp.maximum, _windows(images, axis, window, padding))


def _max_axis_forward(images, axis, window, padding):
    largest = _max_axis(images, axis, window, padding)
    return largest, (images, largest)


def _max_axis_backward(axis, window, padding, residuals, cotangent):
    """Entry k of window m lies at row 2m + k: entries 0 and 2 meet in even rows, entry 1 makes the odd ones."""
    images, largest = residuals
    shares, free = [], True
    for entry in _windows(images, axis, window, padding):
        chosen = (entry == largest) & free
        shares.append(jnp.where(chosen, cotangent, 0))
        free = free & ~chosen
    even, odd = (_pad_axis(share, axis, 0, 1, 0) for share in shares[:2])
    if window == 3:
        even = even + _pad_axis(shares[2], axis, 1, 0, 0)
    size, num_rows = images.shape[axis], even.shape[axis]
    low = _same_padding(size, window, 2)[0] if padding == "SAME" else 0
    shape = (*images.shape[:axis], 2 * num_rows, *images.shape[axis + 1 :])
    rows = jnp.stack([even, odd], axis=axis + 1).reshape(shape)
    return (lax.slice_in_dim(rows, low, low + size, axis=axis),)


_max_axis.defvjp(_max_axis_forward, _max_axis_backward)


def _windows(images, axis, window, padding):
    """Entries 0 to window - 1 of every window along an axis."""
    low, high, num_out = _same_padding(images.shape[axis], window, 2)
    if padding == "VALID":
        low, high, num_out = 0, 0, (images.shape[axis] - window) // 2 + 1
    padded = _pad_axis(images, axis, low, high, -jnp.inf)
    return [_every(padded, axis, start, num_out, 2) for start in range(window)]


def _same_padding(size, window, stride):
    """TensorFlow's rule: (low, high, number of outputs) with the odd pixel at the end."""
    num_out = -(-size // stride)
    total = max((num_out - 1) * stride + window - size, 0)
    return total // 2, total - total // 2, num_out


def _pad_axis(images, axis, low, high, value):
    widths = [(0, 0)] * images.ndim
    widths[axis] = (low, high)
    return jnp.pad(images, widths, constant_values=value)


def _window(images, corner, counts, stride):
    """Every so many rows and columns (B, *counts, C), from a corner on."""
    starts = (0, *corner, 0)
    ends = [start + stride * (count - 1) + 1 for start, count in zip(corner, counts, strict=True)]
    return lax.slice(images, starts, (len(images), *ends, images.shape[3]), (1, stride, stride, 1))


def _every(images, axis, start, count, stride):
    return lax.slice_in_dim(images, start, start + stride * (count - 1) + 1, stride, axis)
