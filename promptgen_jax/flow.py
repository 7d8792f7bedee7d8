"""The flow f of the paper (its INN): noise eps to latent z, exactly invertible, with exact log-determinants.

Forward is eps to z, the fast direction for sampling. `RealNVP` owns the networks and hands out a distrax bijector;
`Flow` joins it to the prior, whose density is also the base density. Trained arrays are `params` and are passed to
every method; fixed rotations and permutations are `buffers` and stay inside `Flow`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import distrax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks, weights
from promptgen_jax.ops import bijectors
from promptgen_jax.types import Array, Prior, PyTree

ARCHITECTURES = ("allinone", "coupling")

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
      cond_dim: A, length of the condition; it is concatenated raw to the input of every conditioner.
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
    architecture: str = "allinone"
    num_layers: int = 8
    hidden_dim: int = 256
    clamp: str | None = None
    negative_slope: float = 0.1
    identity_start: bool = False

    def setup(self):
        """Makes one flow per block of the prior."""
        options = dict(num_layers=self.num_layers, hidden_dim=self.hidden_dim, negative_slope=self.negative_slope)
        if self.architecture == "allinone":
            options |= dict(clamp=self.clamp or "tanh", identity_start=self.identity_start)
            self.flows = [AllInOne(size, **options) for size in self.blocks]
        else:
            self.flows = [Coupling(size, **options, clamp=self.clamp or "tanh_half") for size in self.blocks]

    def __call__(self, cond: Array | None = None) -> distrax.Bijector:
        """The bijector eps (..., D) to z (..., D), for conditions (..., A)."""
        # distrax.Chain applies its last entry first.
        chains = [distrax.Chain(flow(cond)[::-1]) for flow in self.flows]
        return chains[0] if len(chains) == 1 else bijectors.SideBySide(chains, self.blocks)


@struct.dataclass
class Flow:
    """The density `log p_theta(z) = log p_z(eps) - log_det`, eps = f^{-1}(z) (Eq. 8), as pure functions of params.

    Attributes:
      buffers: fixed rotations and permutations.
      prior: base distribution, the generator's own prior.
      module: the networks.
    """

    buffers: PyTree
    prior: Prior
    module: RealNVP = struct.field(pytree_node=False)

    @property
    def cond_dim(self) -> int:
        """A, length of a condition; 0 if the flow takes none."""
        return self.module.cond_dim

    def bijector(self, params: PyTree, cond: Array | None = None) -> distrax.Bijector:
        """The distrax bijector eps (..., D) to z (..., D); `cond` (..., A) must have the same batch shape."""
        return self.module.apply({"params": params, "buffers": self.buffers}, cond)

    def distribution(self, params: PyTree, cond: Array | None = None) -> distrax.Transformed:
        """The distribution of z: the prior pushed through the flow.

        With a condition its own `sample` is meaningless, since distrax maps over draws but not over conditions; use
        `sample_and_log_prob`.
        """
        base = distrax.MultivariateNormalDiag(self.prior.loc, self.prior.scale)
        return distrax.Transformed(base, self.bijector(params, cond))

    def forward_and_log_det(self, params: PyTree, eps: Array, cond: Array | None = None) -> tuple[Array, Array]:
        """Noise (B, D), and conditions (B, A) if any, to latents (B, D) and log abs det of dz/deps (B,), nats.

        Raises:
          ValueError, TypeError: wrong shape or dtype, NaN or infinite noise, condition missing or not wanted.
        """
        self._check("flow.forward_and_log_det", eps, cond)
        return self.bijector(params, cond).forward_and_log_det(eps)

    def inverse_and_log_det(self, params: PyTree, z: Array, cond: Array | None = None) -> tuple[Array, Array]:
        """Latents (B, D) to the noise (B, D) behind them and log abs det of deps/dz (B,), nats.

        Raises:
          ValueError, TypeError: as `forward_and_log_det`.
        """
        self._check("flow.inverse_and_log_det", z, cond)
        return self.bijector(params, cond).inverse_and_log_det(z)

    def log_prob(self, params: PyTree, z: Array, cond: Array | None = None) -> Array:
        """Exact log density (B,), nats, of latents (B, D) under the trained prior.

        Raises:
          ValueError, TypeError: as `forward_and_log_det`.
        """
        self._check("flow.log_prob", z, cond)
        return self.distribution(params, cond).log_prob(z)

    def sample_and_log_prob(
        self, params: PyTree, key: Array, num_samples: int, cond: Array | None = None
    ) -> tuple[Array, Array]:
        """Draws latents (num_samples, D) and their exact log density (num_samples,), nats, in one forward pass.

        Raises:
          ValueError, TypeError: raw or batched key, num_samples below 1, condition missing or not wanted.
        """
        checks.check_key("flow.sample_and_log_prob", key)
        checks.check_count("flow.sample_and_log_prob: num_samples", num_samples)
        eps = self.prior.sample(key, num_samples)
        z, log_det = self.forward_and_log_det(params, eps, cond)
        return z, self.prior.log_prob(eps) - log_det

    def _check(self, where: str, latents: Array, cond: Array | None) -> None:
        checks.check_latents(where, latents, self.prior.dim)
        checks.check_cond(where, cond, self.cond_dim, latents.shape[0])


def build_module(prior: Prior, *, cond_dim: int = 0, **options) -> RealNVP:
    """Checks the options and makes the networks for a prior.

    Raises:
      ValueError: unknown option, architecture or clamp (with the nearest match), or a size out of range.
    """
    for name in options:
        checks.check_known("flow option", name, _option_names())
    module = RealNVP(blocks=tuple(prior.blocks), cond_dim=cond_dim, **options)
    checks.check_known("flow architecture", module.architecture, ARCHITECTURES)
    if module.clamp is not None:
        checks.check_known("flow clamp", module.clamp, bijectors.CLAMPS)
    checks.check_count("flow: cond_dim", module.cond_dim, minimum=0)
    checks.check_count("flow: num_layers", module.num_layers)
    checks.check_count("flow: hidden_dim", module.hidden_dim)
    for size in module.blocks:
        checks.check_count("flow: block size", size, minimum=2)
    return module


def init_flow(key: Array, prior: Prior, *, cond_dim: int = 0, **options) -> tuple[Flow, PyTree]:
    """A new flow for a prior.

    Args:
      key: draws rotations or permutations, and initial weights.
      prior: the generator's prior; one independent flow per block.
      cond_dim: length of the condition, 0 for none.
      **options: further fields of `RealNVP`: architecture, num_layers, hidden_dim, clamp, negative_slope,
        identity_start.

    Returns:
      (flow, params): the flow with its fixed buffers, and the arrays to train.

    Raises:
      ValueError, TypeError: unknown option or architecture (with the nearest match), size out of range, raw key.
    """
    checks.check_key("init_flow", key)
    module = build_module(prior, cond_dim=cond_dim, **options)
    variables = jax.jit(module.init)(key, _example_cond(module))
    return Flow(buffers=variables["buffers"], prior=prior, module=module), variables["params"]


def _example_cond(module: RealNVP) -> Array | None:
    return jnp.zeros((1, module.cond_dim)) if module.cond_dim else None


def save_flow(folder: str | Path, flow: Flow, params: PyTree, *, extras: dict | None = None, **about) -> None:
    """Writes a flow folder: config.json (kind "flow") and weights.safetensors with params, buffers, prior and extras.

    Args:
      folder: made or replaced, all or nothing.
      flow: its module, buffers and prior are saved.
      params: the trained arrays.
      extras: further arrays by name, kept under `extras/` and not read by `load_flow`.
      **about: further JSON entries of config.json, e.g. the source and its licence.
    """
    tree = {"params": params, "buffers": flow.buffers, "prior": {"loc": flow.prior.loc, "scale": flow.prior.scale}}
    tree |= {"extras": extras} if extras else {}
    options = {name: getattr(flow.module, name) for name in sorted(_option_names())}
    config = {"kind": "flow", "blocks": list(flow.prior.blocks), "cond_dim": flow.cond_dim, "options": options}
    weights.save_weights(folder, jax.tree.map(np.asarray, tree), {**about, **config})


def load_flow(folder: str | Path) -> tuple[Flow, PyTree]:
    """Reads a flow folder, e.g. a converted official checkpoint.

    Returns:
      (flow, params), as `init_flow`.

    Raises:
      FileNotFoundError: no such folder or file.
      ValueError: not a flow, truncated or altered, options unknown, or arrays missing, unexpected or misshapen.
    """
    config = weights.read_config(folder)
    if config.get("kind") != "flow":
        raise ValueError(f"{folder}: holds a {config.get('kind')}, expected a flow. Choose another folder.")
    prior = Prior.standard(*config["blocks"])
    module = build_module(prior, cond_dim=config["cond_dim"], **config["options"])
    expected = jax.eval_shape(module.init, jax.random.key(0), _example_cond(module))
    expected |= {"prior": {"loc": prior.loc, "scale": prior.scale}}
    tree, _ = weights.load_weights(folder)
    tree.pop("extras", None)
    weights.check_tree(str(folder), tree, expected, converter=config.get("converter", "the training"))
    tree = jax.tree.map(jnp.asarray, tree)
    return Flow(buffers=tree["buffers"], prior=prior.replace(**tree["prior"]), module=module), tree["params"]


def _option_names() -> set[str]:
    return {field.name for field in dataclasses.fields(RealNVP)} - {"parent", "name", "blocks", "cond_dim"}
