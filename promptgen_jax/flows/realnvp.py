"""Networks of the flow: the official all-in-one block, and a plain RealNVP, as Linen modules.

They own conditioners, scales and offsets (`params`), rotations and permutations (`buffers`), and hand out distrax
bijectors made of plain arrays. Forward is eps to z.
"""

from __future__ import annotations

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from promptgen_jax.flows import bijectors

ARCHITECTURES = ("allinone", "coupling")
CONDITIONING = ("concat", "equivariant")

# softplus with beta 0.5 of this is 10, so that the global scale 0.1 * softplus starts at 1.
INITIAL_GLOBAL_SCALE = float(2 * np.log(np.expm1(5.0)))


class Conditioner(nn.Module):
    """Multi-layer perceptron from one part of the vector (and the condition) to scales and shifts of the other.

    Linear layers start like PyTorch's, weights and biases uniform within ±1/sqrt(fan_in), or at zero for the last.
    """

    output_dim: int
    hidden_dims: tuple[int, ...]
    negative_slope: float
    zero_output: bool

    @nn.compact
    def __call__(self, x: Array, cond: Array | None = None) -> Array:
        """(..., d) and (..., A) to (..., output_dim)."""
        x = x if cond is None else jnp.concatenate([x, cond], axis=-1)
        for hidden_dim in self.hidden_dims:
            x = nn.leaky_relu(_linear(hidden_dim, x.shape[-1])(x), self.negative_slope)
        return _linear(self.output_dim, x.shape[-1], zero=self.zero_output)(x)


def _linear(output_dim: int, input_dim: int, *, zero: bool = False) -> nn.Dense:
    def uniform(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, minval=-1.0, maxval=1.0) / np.sqrt(input_dim)

    init = nn.initializers.zeros if zero else uniform
    return nn.Dense(output_dim, kernel_init=init, bias_init=init, precision=bijectors.PRECISION)


class CouplingLayer(nn.Module):
    """The trained part of one layer: an affine coupling, then (for `allinone`) a global scale and offset.

    [x1, x2] -> [x1, x2 exp(s) + t];   y = g * that + offset,   g = 0.2 log(1 + exp(global_scale / 2))
    """

    dim: int
    split: int
    conditioner_options: dict
    clamp: str
    output_scale: float
    global_affine: bool

    def setup(self):
        """Makes the conditioner and, if asked for, the global scale and offset."""
        self.conditioner = Conditioner(2 * (self.dim - self.split), **self.conditioner_options)
        if self.global_affine:
            initial = nn.initializers.constant(INITIAL_GLOBAL_SCALE)
            self.global_scale = self.param("global_scale", initial, (self.dim,))
            self.global_offset = self.param("global_offset", nn.initializers.zeros, (self.dim,))

    def __call__(self, cond: Array | None) -> list[distrax.Bijector]:
        """The bijectors of this layer in the order in which they act."""
        if self.is_initializing():
            self.conditioner(jnp.zeros((1, self.split)), cond)
        # Unbound, the bijector is a plain function of arrays: it may be differentiated, mapped and returned freely.
        network, variables = self.conditioner.unbind()
        conditioner = jax.tree_util.Partial(network.apply, variables, cond=cond)
        acting = [bijectors.AffineCoupling(conditioner, self.split, self.clamp, self.output_scale)]
        if self.global_affine:
            scale = 0.2 * jax.nn.softplus(self.global_scale / 2)
            acting.append(distrax.Block(distrax.ScalarAffine(self.global_offset, scale=scale), 1))
        return acting


class AllInOne(nn.Module):
    """The official flow: coupling, global scale and offset, then a fixed random rotation, `num_layers` times.

    The factor 0.1 on the conditioner's output and the rotations follow FrEIA's AllInOneBlock with `permute_soft`.
    With `identity_start` the last linear layers start at zero and one more fixed rotation undoes all others, so
    that the flow starts as the identity (to rounding); otherwise it starts as a rotation with a small perturbation.
    """

    dim: int
    num_layers: int
    hidden_dim: int
    clamp: str
    negative_slope: float
    identity_start: bool

    def setup(self):
        """Makes the coupling layers and draws the rotations."""
        conditioner_options = dict(
            hidden_dims=(self.hidden_dim,),
            negative_slope=self.negative_slope,
            zero_output=self.identity_start,
        )
        split = self.dim - self.dim // 2
        self.layers = [
            CouplingLayer(self.dim, split, conditioner_options, self.clamp, 0.1, global_affine=True)
            for _ in range(self.num_layers)
        ]
        self.rotations = self.variable("buffers", "rotations", self._draw_rotations)
        if self.identity_start:
            self.undo = self.variable("buffers", "undo", self._compose_undo)

    def _draw_rotations(self) -> Array:
        return bijectors.special_orthogonal(self.make_rng("params"), self.num_layers, self.dim)

    def _compose_undo(self) -> Array:
        return bijectors.compose_rotations(self.rotations.value).T

    def __call__(self, cond: Array | None) -> list[distrax.Bijector]:
        """All bijectors in the order in which they act."""
        acting = []
        for layer, rotation in zip(self.layers, self.rotations.value, strict=True):
            acting += [*layer(cond), bijectors.Rotation(rotation)]
        return [*acting, bijectors.Rotation(self.undo.value)] if self.identity_start else acting


class Coupling(nn.Module):
    """Plain RealNVP: affine couplings whose halves alternate, with a random permutation before each pair.

    The last linear layers start at zero and a last permutation undoes all others, so the flow starts as the exact
    identity. No D x D matrix: the choice for latents of many thousand dimensions.
    """

    dim: int
    num_layers: int
    hidden_dim: int
    clamp: str
    negative_slope: float

    def setup(self):
        """Makes the coupling layers and draws the permutations."""
        conditioner_options = dict(
            hidden_dims=(self.hidden_dim, self.hidden_dim),
            negative_slope=self.negative_slope,
            zero_output=True,
        )
        half = self.dim // 2  # even layers transform the last half, odd layers all the rest
        self.layers = [
            CouplingLayer(
                self.dim,
                self.dim - half if i % 2 == 0 else half,
                conditioner_options,
                self.clamp,
                1.0,
                global_affine=False,
            )
            for i in range(self.num_layers)
        ]
        self.permutations = self.variable("buffers", "permutations", self._draw_permutations)

    def _draw_permutations(self) -> Array:
        keys = jax.random.split(self.make_rng("params"), self.num_layers)
        swap = jnp.roll(jnp.arange(self.dim), self.dim // 2)
        rows = [jax.random.permutation(k, self.dim) if i % 2 == 0 else swap for i, k in enumerate(keys)]
        total = jnp.arange(self.dim)
        for row in rows:
            total = total[row]
        return jnp.stack([*rows, jnp.argsort(total)]).astype(jnp.int32)

    def __call__(self, cond: Array | None) -> list[distrax.Bijector]:
        """All bijectors in the order in which they act."""
        acting = []
        for layer, permutation in zip(self.layers, self.permutations.value[:-1], strict=True):
            acting += [bijectors.Permutation(permutation), *layer(cond)]
        return [*acting, bijectors.Permutation(self.permutations.value[-1])]


class RealNVP(nn.Module):
    """Networks of the flow, one independent flow per block of the prior, handing out a distrax bijector.

    Attributes:
      blocks: sizes of the prior's blocks, each at least 2.
      cond_dim: A, length of the condition rho.
      conditioning: how z depends on it. "concat", as in the official code: it is concatenated to the input of every
        conditioner. "equivariant": z = A(R(rho) B(eps)), where A and B are flows of half the layers each and R rotates
        pairs of features by angles proportional to rho, see `PairRotation`. Then rho acts on latents as well, by
        `action`, and acting with b after a is acting with a + b: a homomorphism (appendix B.5, arXiv 1710.07307).
      cond_scale: factor on the condition before all that; the official 1 leaves angles in radians, small numbers that
        a short training hardly hears.
      architecture: "allinone", the flow of every published configuration, or "coupling", a plain RealNVP.
      num_layers: couplings per block.
      hidden_dim: width of the conditioners (one hidden layer in "allinone", two in "coupling").
      clamp: "tanh", log-scale 2 tanh(a) as in FrEIA 0.2, which the official code pins; "tanh_half", 2 tanh(a / 2) as
        in FrEIA since August 2023. None: "tanh" for "allinone", "tanh_half" for "coupling".
      negative_slope: of the leaky ReLU.
      identity_start: start "allinone" as the identity, so that the same noise shows the same image before and
        after training. "coupling" always does.
    Source: arXiv 2209.06970, section 3.3, and the official model/mapping.py.
    """

    blocks: tuple[int, ...]
    cond_dim: int = 0
    conditioning: str = "concat"
    cond_scale: float = 1.0
    architecture: str = "allinone"
    num_layers: int = 8
    hidden_dim: int = 256
    clamp: str | None = None
    negative_slope: float = 0.1
    identity_start: bool = False

    def setup(self):
        """Makes one flow per block of the prior, of an equivariant flow the parts B and A per block."""
        if self.conditioning == "concat":
            self.flows = [self._make(size, self.num_layers) for size in self.blocks]
        else:
            half = self.num_layers // 2
            self.flows = [self._make(size, self.num_layers - half) for size in self.blocks]
            self.outer_flows = [self._make(size, half) for size in self.blocks]

    def _make(self, size: int, num_layers: int) -> nn.Module:
        options = dict(num_layers=num_layers, hidden_dim=self.hidden_dim, negative_slope=self.negative_slope)
        if self.architecture == "allinone":
            return AllInOne(size, **options, clamp=self.clamp or "tanh", identity_start=self.identity_start)
        return Coupling(size, **options, clamp=self.clamp or "tanh_half")

    def __call__(self, cond: Array | None = None) -> distrax.Bijector:
        """The bijector eps (..., D) to z (..., D), for conditions (..., A)."""
        cond = None if cond is None else self.cond_scale * cond
        if self.conditioning == "concat":
            return self._side_by_side([flow(cond) for flow in self.flows])
        rotation = bijectors.PairRotation(cond)
        parts = zip(self.flows, self.outer_flows, strict=True)
        return self._side_by_side([[*inner(None), rotation, *outer(None)] for inner, outer in parts])

    def action(self, cond: Array) -> distrax.Bijector:
        """Of an equivariant flow: z (..., D) to A(R(rho) A^{-1}(z)), what rho (..., A) does to latents."""
        rotation = bijectors.PairRotation(self.cond_scale * cond)
        outer = [flow(None) for flow in self.outer_flows]
        return self._side_by_side([[*map(distrax.Inverse, acting[::-1]), rotation, *acting] for acting in outer])

    def _side_by_side(self, acting: list[list[distrax.Bijector]]) -> distrax.Bijector:
        """One bijector of those of each block, given in the order in which they act."""
        chains = [distrax.Chain(block[::-1]) for block in acting]  # distrax.Chain applies its last entry first
        return chains[0] if len(chains) == 1 else bijectors.SideBySide(chains, self.blocks)
