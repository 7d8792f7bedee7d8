"""Networks of the flow: the official all-in-one block, and a plain RealNVP, as Linen modules.

They own conditioners, scales and offsets (`params`), rotations and permutations (`buffers`), and hand out distrax
bijectors made of plain arrays. Forward is eps to z.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from promptgen_jax import checks
from promptgen_jax.flows import bijectors
from promptgen_jax.flows.transformers import CLAMPS, complete, make_transformer
from promptgen_jax.types import Prior, PyTree, Spec, Stack

ARCHITECTURES = ("allinone", "coupling")
CONDITIONING = ("concat", "equivariant")
PRESETS = {"large": {"num_layers": 16, "hidden_dim": 128}}  # options by name; those given beside it go first

GATE = 6.0  # of the dials: how fast a flow opens, from the identity at strength 0

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
      dials: places in the condition of strengths s, with all of which at 0 the flow is the identity, to the last bit:
        what conditioners return is multiplied by 1 - exp(-6 Σ |s|), and the rounding of what is left is kept away. Of
        "coupling" alone, as the global scales of "allinone" do not vanish with what conditioners return.
      dial_heads: conditioners return numbers for each dial, which are added up, times 1 - exp(-6 |s|) of its own
        strength, so that a dial at 0 adds nothing to another.
      transformer: what couplings do to each number, by name or with options, see `flows.transformers`: "affine", the
        paper's, "spline", `{"kind": "spline", "num_bins": 8, "bound": 5.0}`, or a module outside the library.
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
    dials: tuple[int, ...] = ()
    dial_heads: bool = False
    transformer: Any = "affine"

    def setup(self) -> None:
        """Makes one flow per block of the prior, of an equivariant flow the parts B and A per block."""
        if self.conditioning == "concat":
            self.flows = [self._make(size, self.num_layers) for size in self.blocks]
        else:
            half = self.num_layers // 2
            self.flows = [self._make(size, self.num_layers - half) for size in self.blocks]
            self.outer_flows = [self._make(size, half) for size in self.blocks]

    @property
    def spec(self) -> Spec:
        """What the flow is: all options but the condition's length, which follows from the target."""
        return Spec.of("realnvp", {name: getattr(self, name) for name in sorted(_option_names())})

    @nn.nowrap
    def draw(self, key: Array) -> dict[str, PyTree]:
        """New `params`, to be trained, and `buffers`, which stay."""
        return self.init(key, jnp.zeros((1, self.cond_dim)) if self.cond_dim else None)

    @nn.nowrap
    def bijector(self, params: PyTree, buffers: PyTree, cond: Array | None) -> distrax.Bijector:
        """The bijector of these arrays, eps (..., D) to z (..., D)."""
        return self.apply({"params": params, "buffers": buffers}, cond)

    def _make(self, size: int, num_layers: int) -> nn.Module:
        clamp = self.clamp or ("tanh" if self.architecture == "allinone" else "tanh_half")
        options = dict(
            num_layers=num_layers,
            hidden_dim=self.hidden_dim,
            transformer=make_transformer(self.transformer, clamp=clamp),
            negative_slope=self.negative_slope,
        )
        if self.architecture == "allinone":
            return AllInOne(size, **options, identity_start=self.identity_start)
        return Coupling(size, **options, heads=len(self.dials) if self.dials and self.dial_heads else 1)

    def __call__(self, cond: Array | None = None) -> distrax.Bijector:
        """The bijector eps (..., D) to z (..., D), for conditions (..., A)."""
        gate = self._gate(cond)
        cond = None if cond is None else self.cond_scale * cond
        if gate is not None:
            off = jnp.all(gate == 0, axis=-1, keepdims=True)
            return self._side_by_side([[bijectors.Held(_chain(flow(cond, gate)), off)] for flow in self.flows])
        if self.conditioning == "concat":
            return self._side_by_side([flow(cond) for flow in self.flows])
        rotation = bijectors.PairRotation(jnp.zeros(0) if cond is None else cond)
        parts = zip(self.flows, self.outer_flows, strict=True)
        return self._side_by_side([[*inner(None), rotation, *outer(None)] for inner, outer in parts])

    def _gate(self, cond: Array | None) -> Array | None:
        """A factor for each head, (..., heads), that vanishes with its strength, or with all; None without dials."""
        if not self.dials or cond is None:
            return None
        strengths = jnp.abs(cond[..., self.dials])
        return -jnp.expm1(-GATE * (strengths if self.dial_heads else jnp.sum(strengths, axis=-1, keepdims=True)))

    def action(self, cond: Array) -> distrax.Bijector:
        """Of an equivariant flow: z (..., D) to A(R(rho) A^{-1}(z)), what rho (..., A) does to latents."""
        rotation = bijectors.PairRotation(self.cond_scale * cond)
        outer = [flow(None) for flow in self.outer_flows]
        return self._side_by_side([[*map(distrax.Inverse, acting[::-1]), rotation, *acting] for acting in outer])

    def _side_by_side(self, acting: list[list[distrax.Bijector]]) -> distrax.Bijector:
        """One bijector of those of each block, given in the order in which they act."""
        chains = [_chain(block) for block in acting]
        return chains[0] if len(chains) == 1 else bijectors.SideBySide(chains, self.blocks)


def _chain(acting: list[distrax.Bijector]) -> distrax.Bijector:
    """One bijector of several, in the order in which they act; distrax.Chain applies its last entry first."""
    return distrax.Chain(acting[::-1])


def build(prior: Prior, *, cond_dim: int = 0, preset: str = "", **options: Any) -> RealNVP:
    """Checks the options and makes the networks for a prior.

    Args:
      prior: one independent flow per block.
      cond_dim: length of the condition, 0 for none.
      preset: options by one name, of `PRESETS`: "large" is 16 layers of width 128.
      **options: further fields of `RealNVP`.

    Raises:
      ValueError: unknown option, architecture, clamp or transformer (with the nearest match), or a size out of range.
    """
    if preset:
        checks.check_known("flow preset", preset, PRESETS)
        options = PRESETS[preset] | options
    for name in options:
        checks.check_known("flow option", name, _option_names())
    if "transformer" in options:
        options["transformer"] = complete(options["transformer"])
    if "dials" in options:
        options["dials"] = tuple(options["dials"])
    module = RealNVP(blocks=tuple(prior.blocks), cond_dim=cond_dim, **checks.plain_numbers(options))
    checks.check_known("flow architecture", module.architecture, ARCHITECTURES)
    if module.clamp is not None:
        checks.check_known("flow clamp", module.clamp, CLAMPS)
        if module.transformer != "affine":
            raise ValueError("flow clamp: it is an option of the affine transformer alone. Leave it out.")
    checks.check_known("flow conditioning", module.conditioning, CONDITIONING)
    checks.check_count("flow: cond_dim", module.cond_dim, minimum=0)
    if module.dials:
        _check_dials(module)
    if module.conditioning == "equivariant" and not module.cond_dim:
        raise ValueError("flow conditioning: equivariant needs a condition, cond_dim is 0. Use concat without one.")
    checks.check_count("flow: num_layers", module.num_layers, minimum=1 + (module.conditioning == "equivariant"))
    checks.check_count("flow: hidden_dim", module.hidden_dim)
    for size in module.blocks:
        checks.check_count("flow: block size", size, minimum=2)
    return module


def _check_dials(module: RealNVP) -> None:
    """Raises ValueError unless the flow can be the exact identity where the strengths of these places are 0."""
    wanted = {"architecture": "coupling", "conditioning": "concat"}
    for name, value in wanted.items():
        if getattr(module, name) != value:
            raise ValueError(
                f"flow {name}: strengths need {value!r}, which alone becomes the identity as they vanish. Leave it out."
            )
    if not all(isinstance(place, int) and 0 <= place < module.cond_dim for place in module.dials):
        raise ValueError(f"flow dials: {module.dials}; expected places in a condition of length {module.cond_dim}.")


def _option_names() -> set[str]:
    return {field.name for field in dataclasses.fields(RealNVP)} - {"parent", "name", "blocks", "cond_dim"}
