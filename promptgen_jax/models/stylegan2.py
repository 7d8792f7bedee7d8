"""StyleGAN2: a mapping network z to w, and a synthesis network that w modulates at every layer.

Scales that the official code multiplies in at run time (equalised learning rate) are folded into the weights.
Source: arXiv 1912.04958; rosinality/stylegan2-pytorch and NVlabs/stylegan2-ada-pytorch compute the same function.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from promptgen_jax.models.layers import ExactDense
from promptgen_jax.ops import upfirdn
from promptgen_jax.ops.convolution import convolve

EPSILON = 1e-8
NORMAL = nn.initializers.normal(0.1)


class StyleGAN2(nn.Module):
    """Latents to square RGB images of 4 · 2^(len(channels) - 1) pixels.

    Buffers: `mean_latent` (S,), the mean of w, and the stored noise maps `noise_<k>` (r, r), r = 4, 8, 8, 16, 16, ...,
    if there are any.

    Attributes:
      channels: of the features at 4, 8, 16, ... pixels.
      style_dim: S, the length of w.
      mapping_layers: depth of the mapping network.
      conv_clamp: bound on the activations, or None.
      stored_noise: whether there are stored noise maps.
    """

    channels: tuple[int, ...]
    style_dim: int = 512
    mapping_layers: int = 8
    conv_clamp: float | None = None
    stored_noise: bool = True

    def setup(self):
        """Makes the two networks and the buffers."""
        self.mapping = Mapping(self.style_dim, self.mapping_layers)
        self.synthesis = Synthesis(self.channels, self.conv_clamp)
        self.mean_latent = self.variable("buffers", "mean_latent", jnp.zeros, self.style_dim)
        self.noise = [
            self.variable("buffers", f"noise_{index}", jnp.zeros, shape)
            for index, shape in enumerate(self.noise_shapes if self.stored_noise else [])
        ]

    @property
    def noise_shapes(self) -> list[tuple[int, int]]:
        """(r, r) of every noise map, one per styled convolution."""
        sizes = [4 << (index + 1) // 2 for index in range(2 * len(self.channels) - 1)]
        return [(size, size) for size in sizes]

    def __call__(
        self,
        z: jax.Array,
        *,
        truncation_psi: float = 1.0,
        noise: Sequence[jax.Array] | str = (),
        remat_from: int | None = None,
    ) -> jax.Array:
        """Images (B, S, S, 3), nominally in [0, 1], of latents z (B, D).

        Args:
          z: (B, D) standard normal.
          truncation_psi: w is drawn towards its mean, mean + psi (w - mean); 1 leaves it alone.
          noise: one map (B or 1, r, r) per styled convolution, empty for no noise, or "const" for the stored maps.
          remat_from: pixels; from this resolution on, a gradient computes features again; None: it keeps all.

        Raises:
          ValueError: "const" where none are stored.
        """
        w = truncate(self.mapping(z), self.mean_latent.value, truncation_psi)
        if isinstance(noise, str):
            self.check_stored("StyleGAN2")
            noise = [stored.value[None] for stored in self.noise]
        ws = jnp.broadcast_to(w[:, None], (len(w), 2 * len(self.channels), self.style_dim))
        return (self.synthesis(ws, noise, remat_from) + 1) / 2

    @nn.nowrap
    def check_stored(self, where: str) -> None:
        """Raises ValueError if no noise maps are stored."""
        if not self.stored_noise:
            raise ValueError(
                f"{where}: noise 'const' asks for stored noise maps, and the file it was converted from has none. Use "
                "'random' or 'none'."
            )


def truncate(w: jax.Array, mean: jax.Array, psi: float) -> jax.Array:
    """The truncation trick, mean + psi (w - mean); at psi 1 exactly w."""
    return w + (1 - psi) * (mean - w)


class Mapping(nn.Module):
    """Normalisation to unit mean square, then dense layers."""

    features: int
    layers: int

    @nn.compact
    def __call__(self, z):
        """Styles w (B, S) of latents z (B, D)."""
        x = z * lax.rsqrt(jnp.mean(z**2, axis=-1, keepdims=True) + EPSILON)
        for index in range(self.layers):
            x = _activate(ExactDense(self.features, name=f"layer_{index}")(x))
        return x


class Synthesis(nn.Module):
    """Blocks from 4 pixels upwards, each at twice the resolution of the one before."""

    channels: tuple[int, ...]
    conv_clamp: float | None

    @nn.compact
    def __call__(self, ws, noise, remat_from=None):
        """The raw image (B, H, W, 3), nominally in [-1, 1].

        Args:
          ws: (B, 2 · len(channels), S), one w per layer; the colours of a block and the next convolution share theirs.
          noise: one map (B or 1, r, r) per styled convolution, or empty.
          remat_from: as in `StyleGAN2`.
        """
        constant = self.param("constant", NORMAL, (4, 4, self.channels[0]))
        x, image = jnp.broadcast_to(constant, (len(ws), *constant.shape)), None
        for index, features in enumerate(self.channels):
            first, last = max(2 * index - 1, 0), 2 * index + 1
            pixels = 4 << index
            made = Block if remat_from is None or pixels < remat_from else nn.remat(Block)
            block = made(features, self.conv_clamp, name=f"block_{pixels}")
            x, image = block(x, image, ws[:, first : last + 1], noise[first:last])
        return image


class Block(nn.Module):
    """One resolution: an upsampling convolution (but at 4 pixels), another, and the colours added to the picture."""

    features: int
    conv_clamp: float | None

    @nn.compact
    def __call__(self, x, image, ws, noise):
        """Features (B, H, W, I) and the picture so far to twice the resolution; `image` is None at 4 pixels."""
        convolutions = ("conv1",) if image is None else ("conv0", "conv1")
        for index, name in enumerate(convolutions):
            convolution = StyledConv(self.features, upsample=name == "conv0", conv_clamp=self.conv_clamp, name=name)
            x = convolution(x, ws[:, index], noise[index] if len(noise) else None)
        colours = ToRGB(self.conv_clamp, name="to_rgb")(x, ws[:, -1])
        return x, colours if image is None else upfirdn.upsample(image) + colours


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU.

    Scaling the input by the style and the output by the demodulation equals a convolution with weights of its own for
    every sample, and needs one shared kernel only.
    """

    features: int
    upsample: bool
    conv_clamp: float | None

    @nn.compact
    def __call__(self, x, w, noise):
        """Features (B, H, W, O), or twice that resolution, of x (B, H, W, I), w (B, S) and a map (B or 1, r, r)."""
        kernel = self.param("kernel", NORMAL, (3, 3, x.shape[-1], self.features))
        strength = self.param("noise_strength", nn.initializers.zeros, ())
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        style = ExactDense(x.shape[-1], name="style")(w)
        x = x * style[:, None, None]
        x = upfirdn.upsample_conv(x, kernel) if self.upsample else _convolve(x, kernel)
        squares = jnp.sum(kernel.astype(style.dtype) ** 2, axis=(0, 1))
        x = x * lax.rsqrt(jnp.matmul(style**2, squares, precision="highest") + EPSILON)[:, None, None]
        if noise is not None:
            x = x + strength * noise[..., None]
        # without the barrier XLA keeps for the gradient also the slopes of the activation, as numbers
        return lax.optimization_barrier(_clamp(_activate(x + bias), self.conv_clamp))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to three colours, not demodulated."""

    conv_clamp: float | None

    @nn.compact
    def __call__(self, x, w):
        """Colours (B, H, W, 3) of features x (B, H, W, I) and w (B, S)."""
        kernel = self.param("kernel", NORMAL, (1, 1, x.shape[-1], 3))
        bias = self.param("bias", nn.initializers.zeros, (3,))
        style = ExactDense(x.shape[-1], name="style")(w)
        return _clamp(_convolve(x * style[:, None, None], kernel) + bias, self.conv_clamp)


def _convolve(x, kernel):
    zeros = len(kernel) // 2
    return convolve(x, kernel, padding=((zeros, zeros), (zeros, zeros)))


def _activate(x):
    return nn.leaky_relu(x, 0.2) * 2**0.5


def _clamp(x, bound):
    return x if bound is None else jnp.clip(x, -bound, bound)
