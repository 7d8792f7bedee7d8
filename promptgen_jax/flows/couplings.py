"""Networks of the couplings: the layers of the official all-in-one block and of a plain RealNVP, as Linen modules.

They own conditioners, scales and offsets (`params`), rotations and permutations (`buffers`), and hand out distrax
bijectors made of plain arrays. Forward is eps to z.
"""

from __future__ import annotations

from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from promptgen_jax.flows import bijectors
from promptgen_jax.types import PyTree, Stack

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
    def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, minval=-1.0, maxval=1.0) / np.sqrt(input_dim)

    init = nn.initializers.zeros if zero else uniform
    return nn.Dense(output_dim, kernel_init=init, bias_init=init, precision=bijectors.PRECISION)


class CouplingLayer(nn.Module):
    """The trained part of one layer: a coupling, then (for `allinone`) a global scale and offset.

    Of x = [x1, x2] the tail x2 passes an elementwise transformer T that x1 steers, in the paper an affine one:

        [x1, x2] -> [x1, T(x2; output_scale * conditioner(x1))];   y = g * that + offset,
        g = 0.2 log(1 + exp(global_scale / 2))

    With several `heads` the conditioner returns as many sets of numbers, which are added up, each times its gate.
    """

    dim: int
    split: int
    conditioner_options: dict
    transformer: Any
    output_scale: float
    global_affine: bool
    heads: int = 1

    def setup(self) -> None:
        """Makes the conditioner and, if asked for, the global scale and offset."""
        output_dim = self.heads * self.transformer.num_params * (self.dim - self.split)
        self.conditioner = Conditioner(output_dim, **self.conditioner_options)
        if self.global_affine:
            initial = nn.initializers.constant(INITIAL_GLOBAL_SCALE)
            self.global_scale = self.param("global_scale", initial, (self.dim,))
            self.global_offset = self.param("global_offset", nn.initializers.zeros, (self.dim,))

    def __call__(self, cond: Array | None, gate: Array | None = None) -> list[distrax.Bijector]:
        """The bijectors of this layer in the order in which they act; a `gate` (..., heads) of 0 shuts the coupling."""
        if self.is_initializing():
            self.conditioner(jnp.zeros((1, self.split)), cond)
        # Unbound, the bijector is a plain function of arrays: it may be differentiated, mapped and returned freely.
        network, variables = self.conditioner.unbind()
        conditioner = jax.tree_util.Partial(network.apply, variables, cond=cond)
        transformer, output_scale = self.transformer, self.output_scale

        def steered(raw: Array) -> distrax.Bijector:
            if gate is not None:
                raw = jnp.sum(gate[..., None] * raw.reshape(*raw.shape[:-1], self.heads, -1), axis=-2)
            return transformer(*jnp.split(output_scale * raw, transformer.num_params, axis=-1))

        acting = [distrax.SplitCoupling(self.split, event_ndims=1, conditioner=conditioner, bijector=steered)]
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
    transformer: Any
    negative_slope: float
    identity_start: bool

    def setup(self) -> None:
        """Makes the coupling layers and draws the rotations."""
        conditioner_options = dict(
            hidden_dims=(self.hidden_dim,),
            negative_slope=self.negative_slope,
            zero_output=self.identity_start,
        )
        split = self.dim - self.dim // 2
        self.layers = [
            CouplingLayer(self.dim, split, conditioner_options, self.transformer, 0.1, global_affine=True)
            for _ in range(self.num_layers)
        ]
        self.rotations = self.variable("buffers", "rotations", self._draw_rotations)
        if self.identity_start:
            self.undo = self.variable("buffers", "undo", self._compose_undo)

    def _draw_rotations(self) -> Stack:
        return Stack.of(bijectors.special_orthogonal(self.make_rng("params"), self.num_layers, self.dim))

    def _compose_undo(self) -> Array:
        return bijectors.compose_rotations(self.rotations.value).T

    def __call__(self, cond: Array | None) -> list[distrax.Bijector]:
        """All bijectors in the order in which they act."""
        acting = []
        for layer, rotation in zip(self.layers, self.rotations.value, strict=True):
            acting += [*layer(cond), bijectors.Rotation(rotation)]
        return [*acting, bijectors.Rotation(self.undo.value)] if self.identity_start else acting


class Coupling(nn.Module):
    """Plain RealNVP: couplings whose halves alternate, with a random permutation before each pair.

    A program holds one pair, as the body of a loop, however many there are.

    The last linear layers start at zero and a last permutation undoes all others, so the flow starts as the exact
    identity. No D x D matrix: the choice for latents of many thousand dimensions.
    """

    dim: int
    num_layers: int
    hidden_dim: int
    transformer: Any
    negative_slope: float
    heads: int = 1

    def setup(self) -> None:
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
                self.transformer,
                1.0,
                global_affine=False,
                heads=self.heads,
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

    def __call__(self, cond: Array | None, gate: Array | None = None) -> list[distrax.Bijector]:
        """All bijectors in the order in which they act; with a `gate` (..., heads) of 0 they are the identity."""
        if self.is_initializing():  # for the arrays alone: nothing is stacked, each shape by a program of its own
            return [bijector for layer in self.layers for bijector in layer(cond, gate)]
        permutations = self.permutations.value
        networks, variables = zip(*(layer.unbind() for layer in self.layers), strict=True)

        def pair(arrays: PyTree, shared: PyTree) -> list[distrax.Bijector]:
            """Of a pair of layers, or of the last one alone."""
            acting: list[distrax.Bijector] = []
            for network, each, permutation in zip(networks, *arrays, strict=False):
                acting += [bijectors.Permutation(permutation), *network.apply(each, *shared)]
            return acting

        shared, (pairs, alone) = (cond, gate), divmod(self.num_layers, 2)
        acting = pair((variables[-1:], permutations[-2:-1]), shared) if alone else []
        if pairs:
            along = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *variables[i : 2 * pairs : 2]) for i in range(2)]
            rows = permutations[: 2 * pairs].reshape(pairs, 2, self.dim)
            acting = [bijectors.Repeated(pair, (along, rows), shared), *acting]
        return [*acting, bijectors.Permutation(permutations[-1])]
