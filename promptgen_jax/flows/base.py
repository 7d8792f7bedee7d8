"""The flow f of the paper (its INN): noise eps to latent z, exactly invertible, with exact log-determinants.

Forward is eps to z, the fast direction for sampling. `RealNVP` (models/realnvp.py) owns the networks and hands out a
distrax bijector; `Flow` joins it to the prior, whose density is also the base density. Trained arrays are `params` and
are passed to every method; fixed rotations and permutations are `buffers` and stay inside `Flow`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
from promptgen_jax.flows.bijectors import CLAMPS
from promptgen_jax.flows.realnvp import ARCHITECTURES, CONDITIONING, RealNVP
from promptgen_jax.store import documents, weights
from promptgen_jax.types import Array, Prior, PyTree


@struct.dataclass
class Flow:
    """The density `log p_theta(z) = log p_z(eps) - log_det`, eps = f^{-1}(z) (Eq. 8), as pure functions of params.

    Attributes:
      buffers: fixed rotations and permutations.
      prior: base distribution, the generator's own prior.
      module: the networks.
    """

    buffers: PyTree = struct.field(repr=False)
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

    def forward_and_log_dets(
        self, params: PyTree, eps: Array, cond: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """As `forward_and_log_det`, with the log_det (B,) of the flow of every block; they add up to the whole one."""
        if len(self.prior.blocks) == 1:
            z, log_det = self.forward_and_log_det(params, eps, cond)
            return z, (log_det,)
        self._check("flow.forward_and_log_dets", eps, cond)
        return self.bijector(params, cond).forward_and_log_dets(eps)

    def inverse_and_log_det(self, params: PyTree, z: Array, cond: Array | None = None) -> tuple[Array, Array]:
        """Latents (B, D) to the noise (B, D) behind them and log abs det of deps/dz (B,), nats.

        Raises:
          ValueError, TypeError: as `forward_and_log_det`.
        """
        self._check("flow.inverse_and_log_det", z, cond)
        return self.bijector(params, cond).inverse_and_log_det(z)

    def act(self, params: PyTree, z: Array, cond: Array) -> Array:
        """Moves latents (B, D) by conditions (B, A): f(eps, a) acted on by b is f(eps, a + b) (appendix B.5).

        Raises:
          ValueError: the flow is not equivariant; else as `forward_and_log_det`.
        """
        if self.module.conditioning != "equivariant" or not self.cond_dim:
            raise ValueError(
                "flow.act: conditions act on latents of equivariant flows only. Train a conditional flow with "
                "conditioning='equivariant'."
            )
        self._check("flow.act", z, cond)
        variables = {"params": params, "buffers": self.buffers}
        return self.module.apply(variables, cond, method="action").forward(z)

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
    options = checks.plain_numbers(options)
    for name, value in options.items():
        if not isinstance(value, (str, int, float, bool, type(None))):
            raise ValueError(f"flow option {name}: got {value!r}; expected a number, True, False or a name.")
    module = RealNVP(blocks=tuple(prior.blocks), cond_dim=cond_dim, **options)
    checks.check_known("flow architecture", module.architecture, ARCHITECTURES)
    if module.clamp is not None:
        checks.check_known("flow clamp", module.clamp, CLAMPS)
    checks.check_known("flow conditioning", module.conditioning, CONDITIONING)
    checks.check_count("flow: cond_dim", module.cond_dim, minimum=0)
    if module.conditioning == "equivariant" and not module.cond_dim:
        raise ValueError("flow conditioning: equivariant needs a condition, cond_dim is 0. Use concat without one.")
    checks.check_count("flow: num_layers", module.num_layers, minimum=1 + (module.conditioning == "equivariant"))
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
      **options: further fields of `RealNVP`: conditioning, cond_scale, architecture, num_layers, hidden_dim, clamp,
        negative_slope, identity_start.

    Returns:
      (flow, params): the flow with its fixed buffers, and the arrays to train.

    Raises:
      ValueError, TypeError: unknown option or architecture (with the nearest match), size out of range, raw key.
    """
    checks.check_key("init_flow", key)
    module = build_module(prior, cond_dim=cond_dim, **options)
    variables = module.init(key, _example_cond(module))
    return Flow(buffers=variables["buffers"], prior=prior, module=module), variables["params"]


def variable_shapes(module: RealNVP) -> PyTree:
    """Shapes of all arrays of a flow, `{"params": ..., "buffers": ...}`."""
    return jax.eval_shape(module.init, jax.random.key(0), _example_cond(module))


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
    tree, _ = weights.load_weights(folder)
    with documents.one_sentence(folder, "no flow can be made of its config.json", advice="Copy the folder again."):
        prior = Prior.standard(*config["blocks"])
        module = build_module(prior, cond_dim=config["cond_dim"], **config["options"])
        expected = variable_shapes(module) | {"prior": {"loc": prior.loc, "scale": prior.scale}}
    tree.pop("extras", None)
    weights.check_tree(str(folder), tree, expected, converter=config.get("converter", "the training"))
    tree = jax.tree.map(jnp.asarray, tree)
    return Flow(buffers=tree["buffers"], prior=prior.replace(**tree["prior"]), module=module), tree["params"]


def _option_names() -> set[str]:
    return {field.name for field in dataclasses.fields(RealNVP)} - {"parent", "name", "blocks", "cond_dim"}
