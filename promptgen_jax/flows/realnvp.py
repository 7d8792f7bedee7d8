"""The flow of the paper: couplings of either architecture for every block of the prior, and what they depend on."""

from __future__ import annotations

import dataclasses
from typing import Any

import distrax
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from promptgen_jax import checks
from promptgen_jax.flows import bijectors
from promptgen_jax.flows.couplings import AllInOne, Coupling
from promptgen_jax.flows.transformers import CLAMPS, complete, make_transformer
from promptgen_jax.types import SILENT, Prior, PyTree, Spec

ARCHITECTURES = ("allinone", "coupling")
CONDITIONING = ("concat", "equivariant")
PRESETS = {"large": {"num_layers": 16, "hidden_dim": 128}}  # options by name; those given beside it go first

DIRECTIONS = "directions"  # name of that buffer
BOUNDS = (-1e6, 1e6)  # of numbers that are no sizes
GATE = 6.0  # of the dials: how fast a flow opens, from the identity at strength 0


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
      directions: k, how many directions of the latent the flow moves along, the rest of it staying as the noise says;
        0 for all of it. `pg.fit` takes those along which the energy changes most, see `training.directions`;
        `init_flow` alone draws them. Of priors of one block.
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
    directions: int = dataclasses.field(default=0, metadata={SILENT: True})

    def setup(self) -> None:
        """Makes one flow per block of the prior, of an equivariant flow the parts B and A per block."""
        sizes = (self.directions,) if self.directions else self.blocks
        if self.directions:
            self.basis = self.variable("buffers", DIRECTIONS, self._draw_directions)
        if self.conditioning == "concat":
            self.flows = [self._make(size, self.num_layers) for size in sizes]
        else:
            half = self.num_layers // 2
            self.flows = [self._make(size, self.num_layers - half) for size in sizes]
            self.outer_flows = [self._make(size, half) for size in sizes]

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

    def _draw_directions(self) -> Array:
        """Orthonormal columns (D, k), uniform among all."""
        return bijectors.special_orthogonal(self.make_rng("params"), 1, self.blocks[0])[0, :, : self.directions]

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
        if self.directions:
            return bijectors.Within(chains[0], self.basis.value)
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
      ValueError: unknown option, architecture, clamp or transformer (with the nearest match), a size out of range, an
        option that the prior or the condition does not allow.
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
    for name in ("cond_scale", "negative_slope"):
        checks.check_number(f"flow: {name}", getattr(module, name), *BOUNDS)
    for name in ("identity_start", "dial_heads"):
        if not isinstance(value := getattr(module, name), bool):
            raise ValueError(f"flow: {name} is {value!r}; expected True or False.")
    for size in module.blocks:
        checks.check_count("flow: block size", size, minimum=2)
    if module.directions != 0:
        _check_directions(module)
        if np.ptp(np.broadcast_to(prior.scale, module.blocks)) > 0:
            raise ValueError(
                "flow directions: the deviations of the prior differ from coordinate to coordinate, so no direction is "
                "like another. Leave directions out, or bring the latent to one scale."
            )
    return module


def _check_directions(module: RealNVP) -> None:
    """Raises ValueError unless the latent has so many directions, and couplings can act on as many numbers."""
    if len(module.blocks) > 1:
        raise ValueError(
            f"flow directions: the prior has {len(module.blocks)} blocks, which have a flow each. Leave it out."
        )
    checks.check_count("flow: directions", module.directions, minimum=2)
    if module.directions > module.blocks[0]:
        raise ValueError(
            f"flow directions: {module.directions} of a latent of {module.blocks[0]} numbers. Give at most as many."
        )


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
