"""StyleNeRF: a small volume rendering of features, styled by w, and a StyleGAN2-like upsampler of 1x1 convolutions.

Scales that the official code multiplies in at run time are folded into the weights. Source: arXiv 2110.08985;
facebookresearch/StyleNeRF, training/stylenerf.py and training/networks.py.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from promptgen_jax.models import volume
from promptgen_jax.models.layers import Dense, ExactDense
from promptgen_jax.models.stylegan2 import EPSILON, NORMAL, Mapping, truncate
from promptgen_jax.ops import products, upfirdn

COLOURS = 3
UPSAMPLERS = ("pixelshuffle", "nn_cat")


class StyleNeRF(nn.Module):
    """Latents to square RGB images of volume_size · 2^len(channels) pixels, seen by a camera on the unit sphere.

    Buffer: `mean_latent` (S,), the mean of w.

    Attributes:
      channels: of the upsampling blocks.
      style_dim: S, the length of w.
      mapping_layers: depth of the mapping network.
      volume_size: pixels a side of the volume rendering.
      foreground: (width, layers) of the foreground network.
      background: (width, layers) of the background network.
      background_dim: length of the background code.
      feature_dim: of the rendering, besides its colours.
      num_samples: of a ray, in each of two passes.
      num_background_samples: of a ray.
      num_frequencies: of the encoding of points.
      fov: field of view in degrees.
      camera_mean: mean angles, radians.
      camera_std: standard deviations of the angles.
      depth_range: from the camera, where the foreground begins and ends.
      background_start: inverse depth at which the background begins.
      align_corner: of the grid of rays, see `volume.pixel_grid`.
      upsampler: "pixelshuffle" or "nn_cat", what a block adds to its doubled features.
      conv_clamp: bound on the activations, or None.
    """

    channels: tuple[int, ...]
    style_dim: int = 512
    mapping_layers: int = 8
    volume_size: int = 32
    foreground: tuple[int, int] = (128, 8)
    background: tuple[int, int] = (64, 4)
    background_dim: int = 32
    feature_dim: int = 256
    num_samples: int = 14
    num_background_samples: int = 4
    num_frequencies: int = 10
    fov: float = 12.0
    camera_mean: tuple[float, float] = (0.0, float(np.pi / 2))
    camera_std: tuple[float, float] = (0.3, 0.155)
    depth_range: tuple[float, float] = (0.88, 1.12)
    background_start: float = 0.5
    align_corner: bool = True
    upsampler: str = "pixelshuffle"
    conv_clamp: float | None = 256.0

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        angles: jax.Array | None = None,
        code: jax.Array | None = None,
        *,
        truncation_psi: float = 1.0,
        block_gradient: bool = False,
    ) -> jax.Array:
        """Images (B, H, W, 3), nominally in [0, 1].

        Args:
          z: (B, D) standard normal.
          angles: (B, 2) of the camera, radians; the mean of the cameras by default.
          code: (B, background_dim) standard normal; zeros by default.
          truncation_psi: w is drawn towards its mean, mean + psi (w - mean).
          block_gradient: no gradient through the volume rendering, as in the official PromptGen.
        """
        stored = self.variable("buffers", "mean_latent", jnp.zeros, self.style_dim)
        w = truncate(Mapping(self.style_dim, self.mapping_layers, name="mapping")(z), stored.value, truncation_psi)
        angles = jnp.tile(jnp.asarray(self.camera_mean), (len(z), 1)) if angles is None else angles
        code = jnp.zeros((len(z), self.background_dim)) if code is None else code
        with products.exact():
            rendered = self._render(w, angles, code)
        rendered = lax.stop_gradient(rendered) if block_gradient else rendered
        rendered = rendered.reshape(len(z), self.volume_size, self.volume_size, -1)
        image, x = rendered[..., :COLOURS], rendered[..., COLOURS:]
        for index, features in enumerate(self.channels):
            block = nn.remat(Block)(features, self.upsampler, self.conv_clamp, name=f"block_{index}")
            x, image = block(x, image, w)
        return (image + 1) / 2

    def _render(self, w, angles, code):
        """Colours and features (B, N, 3 + feature_dim) of the rays."""
        rotation, centres = volume.look_at_origin(angles)
        image_size = self.volume_size << len(self.channels)
        grid = volume.pixel_grid(self.volume_size, image_size, self.align_corner)
        rays = volume.cast_rays(rotation, grid, self.fov)
        length = jnp.linalg.norm(rays, axis=-1, keepdims=True)
        near, far = self.depth_range
        network = Foreground(*self.foreground, self.feature_dim, self.num_frequencies, name="foreground")

        def look(positions):
            depth = near * (1 - positions) + far * positions
            points = centres[:, None, None] + depth[..., None] * rays[:, :, None]
            return (*network(points, w), depth)

        even = np.linspace(0, 1, self.num_samples, dtype=np.float32)
        coarse = jnp.broadcast_to(even, (*rays.shape[:2], self.num_samples))
        values, density, depth = look(coarse)
        weights, _ = volume.composite(volume.opacity(density, depth, length))
        fine = volume.finer(even, weights)
        more = look(fine)
        positions = jnp.concatenate([fine, coarse], axis=-1)
        order = jnp.argsort(positions, axis=-1)
        values, density, depth = (
            jnp.take_along_axis(
                jnp.concatenate([new, old], axis=2), order[..., None] if old.ndim == 4 else order, axis=2
            )
            for new, old in zip(more, (values, density, depth), strict=True)
        )
        weights, left = volume.composite(volume.opacity(density, depth, length))
        seen = jnp.einsum("bns,bnsf->bnf", weights, values, precision="highest")
        return seen + left[..., None] * self._render_background(centres, rays, code)

    def _render_background(self, centres, rays, code):
        inverse = np.linspace(self.background_start, 0, self.num_background_samples, dtype=np.float32)
        points = volume.background_points(centres, rays, inverse)
        network = Background(*self.background, self.feature_dim, self.num_frequencies, name="background")
        values, density = network(points, code)
        step = self.background_start / (self.num_background_samples - 1)
        opaque = 1 - jnp.exp(-jnp.maximum(density, 0) * step)
        opaque = jnp.concatenate([opaque[..., :-1], jnp.ones_like(opaque[..., :1])], axis=-1)  # the end of the world
        weights, _ = volume.composite(opaque)
        return jnp.einsum("bns,bnsf->bnf", weights, values, precision="highest")


class Foreground(nn.Module):
    """Points to colours, features and densities, every layer styled by w."""

    width: int
    layers: int
    feature_dim: int
    num_frequencies: int

    @nn.compact
    def __call__(self, points, w):
        """Values (B, N, S, 3 + F) and raw densities (B, N, S) of points (B, N, S, 3) and styles (B, W)."""
        x = volume.encode(points, self.num_frequencies)
        for index in range(self.layers):
            x = _activate(Styled(self.width, name=f"layer_{index}")(x, w))
        density = Styled(1, demodulate=False, name="density")(x, w)[..., 0]
        features = Styled(self.feature_dim, demodulate=False, name="features")(x, w)
        return jnp.concatenate([Dense(COLOURS, name="colours")(features), features], axis=-1), density


class Background(nn.Module):
    """Directions and inverse depths to colours, features and densities, given a code."""

    width: int
    layers: int
    feature_dim: int
    num_frequencies: int

    @nn.compact
    def __call__(self, points, code):
        """Values (B, N, S, 3 + F) and raw densities (B, N, S) of points (B, N, S, 4) and codes (B, C)."""
        code = jnp.broadcast_to(code[:, None, None], (*points.shape[:3], code.shape[-1]))
        x = jnp.concatenate([volume.encode(points, self.num_frequencies), code], axis=-1)
        for index in range(self.layers):
            x = nn.relu(Dense(self.width, name=f"layer_{index}")(x))
        density = Dense(1, name="density")(x)[..., 0]
        features = Dense(self.feature_dim, name="features")(x)
        return jnp.concatenate([Dense(COLOURS, name="colours")(features), features], axis=-1), density


class Styled(nn.Module):
    """A matrix at every position, its inputs scaled by a style, its outputs, if demodulated, brought to one scale."""

    features: int
    demodulate: bool = True

    @nn.compact
    def __call__(self, x, w, then=lambda x: x):
        """(B, ..., I) and styles (B, W) to (B, ..., features); `then` is done before the bias is added."""
        kernel = self.param("kernel", NORMAL, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        style = ExactDense(x.shape[-1], name="style")(w)
        x = products.matmul(x * _spread(style, x), kernel)
        if self.demodulate:
            squares = jnp.square(kernel.astype(style.dtype))
            x = x * _spread(lax.rsqrt(jnp.matmul(style**2, squares, precision="highest") + EPSILON), x)
        return then(x) + bias


class Block(nn.Module):
    """Doubles the resolution of the features, and adds colours to the picture."""

    features: int
    upsampler: str
    conv_clamp: float | None

    @nn.compact
    def __call__(self, x, image, w):
        """Features (B, H, W, I) and the picture so far to (B, 2H, 2W, features) and the picture of that size."""
        adapter = Adapter(self.features, self.upsampler, name="adapter")
        gains = [self.param(f"gain{index}", nn.initializers.ones, ()) for index in range(2)]
        x = Styled(self.features, name="conv0")(gains[0] * x, w, lambda x: upfirdn.blur(adapter(x)))
        x = _clamp(_activate(x), self.conv_clamp)
        x = _clamp(_activate(Styled(self.features, name="conv1")(gains[1] * x, w)), self.conv_clamp)
        colours = _clamp(Styled(COLOURS, demodulate=False, name="to_rgb")(x, w), self.conv_clamp)
        return x, upfirdn.upsample(image) + colours


class Adapter(nn.Module):
    """Doubles the resolution by repetition, and adds what a small network makes of a neighbourhood."""

    features: int
    upsampler: str

    @nn.compact
    def __call__(self, x):
        """(B, H, W, features) to (B, 2H, 2W, features)."""
        doubled = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        inner = Dense(self.features // 4, name="layer_0")
        if self.upsampler == "pixelshuffle":
            outer = Dense(4 * self.features, name="layer_1")
            return doubled + _shuffle(outer(_activate(inner(x))))
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        up, down, left, right = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
        corners = jnp.stack([left + up, up + right, left + down, right + down], axis=-1) / 2
        corners = _shuffle(corners.reshape(*x.shape[:-1], -1))
        outer = Dense(self.features, name="layer_1")
        return doubled + outer(_activate(inner(jnp.concatenate([doubled, corners], axis=-1))))


def _shuffle(x):
    """(B, H, W, 4C), channel 4 c + 2 dy + dx, to (B, 2H, 2W, C)."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4)


def _spread(vectors, x):
    """(B, C) beside x (B, ..., C)."""
    return vectors.reshape(len(vectors), *(1,) * (x.ndim - 2), -1)


def _activate(x):
    return nn.leaky_relu(x, 0.2) * 2**0.5


def _clamp(x, bound):
    return x if bound is None else jnp.clip(x, -bound, bound)
