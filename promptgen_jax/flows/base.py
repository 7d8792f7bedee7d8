"""The flow f of the paper (its INN): noise eps to latent z, exactly invertible, with exact log-determinants.

Forward is eps to z, the fast direction for sampling. A file of this folder with a `build`, or a module outside the
library, makes what hands out a distrax bijector: `RealNVP` (realnvp.py), the paper's, or `Own` (own.py). `Flow` joins
it to the prior, whose density is also the base density. Trained arrays are `params` and are passed to every method;
fixed rotations and permutations are `buffers` and stay inside `Flow`.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import distrax
import flax.traverse_util
import jax
import numpy as np
from flax import struct

from promptgen_jax import checks, parts
from promptgen_jax.flows.bijectors import SideBySide
from promptgen_jax.flows.own import Own, build_own
from promptgen_jax.flows.realnvp import RealNVP
from promptgen_jax.store import documents, weights
from promptgen_jax.types import Array, Density, Prior, PyTree, Spec, Stack

PAPER = "realnvp"  # the kind of flow that is meant where none is named


class Flow(struct.PyTreeNode):
    """The density `log p_theta(z) = log p_z(eps) - log_det`, eps = f^{-1}(z) (Eq. 8), as pure functions of params.

    Attributes:
      buffers: fixed rotations and permutations.
      prior: base distribution, the generator's own prior.
      module: the networks, which make the bijector of params, buffers and a condition.
    """

    buffers: PyTree = struct.field(repr=False)
    prior: Prior
    module: RealNVP | Own = struct.field(pytree_node=False)

    @property
    def spec(self) -> Spec:
        """Kind and complete options."""
        return self.module.spec

    @property
    def cond_dim(self) -> int:
        """A, length of a condition; 0 if the flow takes none."""
        return self.module.cond_dim

    def bijector(self, params: PyTree, cond: Array | None = None) -> distrax.Bijector:
        """The distrax bijector eps (..., D) to z (..., D); `cond` (..., A) must have the same batch shape."""
        return self.module.bijector(params, self.buffers, cond)

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
        return _forward(self, params, eps, cond)

    def forward_and_log_dets(
        self, params: PyTree, eps: Array, cond: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """As `forward_and_log_det`, with the log_det (B,) of the flow of every block; they add up to the whole one."""
        self._check("flow.forward_and_log_dets", eps, cond)
        bijector = self.bijector(params, cond)
        if isinstance(bijector, SideBySide):
            return bijector.forward_and_log_dets(eps)
        z, log_det = bijector.forward_and_log_det(eps)
        return z, (log_det,)

    def inverse_and_log_det(self, params: PyTree, z: Array, cond: Array | None = None) -> tuple[Array, Array]:
        """Latents (B, D) to the noise (B, D) behind them and log abs det of deps/dz (B,), nats.

        Raises:
          ValueError, TypeError: as `forward_and_log_det`.
        """
        self._check("flow.inverse_and_log_det", z, cond)
        return _inverse(self, params, z, cond)

    def act(self, params: PyTree, z: Array, cond: Array) -> Array:
        """Moves latents (B, D) by conditions (B, A): f(eps, a) acted on by b is f(eps, a + b) (appendix B.5).

        Raises:
          ValueError: the flow is not equivariant; else as `forward_and_log_det`.
        """
        module = self.module
        if not isinstance(module, RealNVP) or module.conditioning != "equivariant" or not self.cond_dim:
            raise ValueError(
                "flow.act: conditions act on latents of equivariant flows only. Train a conditional flow with "
                "conditioning='equivariant'."
            )
        self._check("flow.act", z, cond)
        variables = {"params": params, "buffers": self.buffers}
        return module.apply(variables, cond, method="action").forward(z)

    def log_prob(self, params: PyTree, z: Array, cond: Array | None = None) -> Array:
        """Exact log density (B,), nats, of latents (B, D) under the trained prior.

        Raises:
          ValueError, TypeError: as `forward_and_log_det`.
        """
        self._check("flow.log_prob", z, cond)
        return _log_prob(self, params, z, cond)

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


@jax.jit  # as a loop over layers would be compiled at every call
def _forward(flow: Flow, params: PyTree, eps: Array, cond: Array | None) -> tuple[Array, Array]:
    return flow.bijector(params, cond).forward_and_log_det(eps)


@jax.jit
def _inverse(flow: Flow, params: PyTree, z: Array, cond: Array | None) -> tuple[Array, Array]:
    return flow.bijector(params, cond).inverse_and_log_det(z)


@jax.jit
def _log_prob(flow: Flow, params: PyTree, z: Array, cond: Array | None) -> Array:
    return flow.distribution(params, cond).log_prob(z)


def kinds() -> list[str]:
    """Kinds of flow in the library: the files of this folder that have a `build`."""
    return [kind for kind in parts.available("flows") if _has_build(kind)]


def _has_build(kind: str) -> bool:
    return hasattr(importlib.import_module(f"promptgen_jax.flows.{kind}"), "build")


def build_module(prior: Prior, *, kind: str = PAPER, cond_dim: int = 0, **options: Any) -> RealNVP | Own:
    """Checks the options and makes the networks for a prior.

    Args:
      prior: the generator's.
      kind: "realnvp", or the dotted name of a module outside the library, see `flows.own`.
      cond_dim: length of the condition, 0 for none.
      **options: of the `build` of that kind.

    Raises:
      TypeError: an option that cannot be saved.
      ValueError: unknown kind or option (with the nearest match), or a size out of range.
    """
    kind, options = check_options({"kind": kind, **options}).pop("kind"), checks.plain_numbers(options)
    if "." in kind:
        return build_own(prior, kind=kind, cond_dim=cond_dim, **options)
    checks.check_known("flow kind", kind, kinds())
    build = parts.find("flows", kind).build
    known = inspect.signature(build).parameters
    if not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        for name in options:
            checks.check_known(
                f"flow {kind}: option", name, [each for each in known if each not in ("prior", "cond_dim")]
            )
    return build(prior, cond_dim=cond_dim, **options)


def check_options(flow: Any) -> dict:
    """The options of a flow as a dict, once it is sure that a saved prompt can name them.

    Raises:
      TypeError: an object in place of options, or within them.
    """
    if isinstance(flow, str):
        raise TypeError(f"flow is {flow!r}; expected its options, such as {{'architecture': 'coupling'}}.")
    if not isinstance(flow, Mapping) or not isinstance(flow.get("kind", PAPER), str):
        found = flow["kind"] if isinstance(flow, Mapping) else flow
        raise TypeError(
            f"flow is {type(found).__name__} {getattr(found, '__name__', '')}".rstrip()
            + ", which a saved prompt could "
            "not name. Put build(prior, **options) into a module that Python can import, and give that by name: "
            "flow={'kind': 'mypackage.chain'}."
        )
    for name, value in checks.plain_numbers(dict(flow)).items():
        try:
            json.dumps(value)
        except TypeError:
            raise TypeError(
                f"flow option {name} is {type(value).__name__}, which a saved prompt could not hold. Give numbers, "
                "text, lists and dicts of them, and make the object in the build of a module, "
                "flow={'kind': 'mypackage.chain'}."
            ) from None
    return dict(flow)


def named_in(options: Any) -> Iterator[str]:
    """Every kind of flow or transformer that options name, for `parts.check_trusted`."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            if name == "kind" and isinstance(value, str):
                yield value
            yield from named_in(value)
    elif isinstance(options, (list, tuple)):
        for value in options:
            yield from named_in(value)


def init_flow(key: Array, prior: Prior, *, cond_dim: int = 0, **options: Any) -> tuple[Density, PyTree]:
    """A new flow for a prior.

    Args:
      key: draws rotations or permutations, and initial weights.
      prior: the generator's prior; one independent flow per block.
      cond_dim: length of the condition, 0 for none.
      **options: kind and options of it. Without a kind, those of `RealNVP`: conditioning, cond_scale, architecture,
        num_layers, hidden_dim, clamp, negative_slope, identity_start, transformer, directions; or a preset, "large".

    Returns:
      (flow, params): the flow with its fixed buffers, and the arrays to train.

    Raises:
      ValueError, TypeError: unknown option or architecture (with the nearest match), size out of range, raw key.
    """
    checks.check_key("init_flow", key)
    module = build_module(prior, cond_dim=cond_dim, **options)
    variables = module.draw(key)
    return _join(module, variables["buffers"], prior), variables["params"]


def variable_shapes(module: RealNVP | Own) -> PyTree:
    """Shapes of all arrays of a flow as a file holds them, `{"params": ..., "buffers": ...}`."""
    return jax.eval_shape(_whole, _drawn(module))


def _drawn(module: RealNVP | Own) -> PyTree:
    """Shapes of all arrays of a flow in memory."""
    return jax.eval_shape(module.draw, jax.random.key(0))


def save_flow(folder: str | Path, flow: Density, params: PyTree, *, extras: dict | None = None, **about: Any) -> None:
    """Writes a flow folder: config.json (kind "flow") and weights.safetensors with params, buffers, prior and extras.

    Args:
      folder: made or replaced, all or nothing.
      flow: its kind, options, buffers and prior are saved.
      params: the trained arrays.
      extras: further arrays by name, kept under `extras/` and not read by `load_flow`.
      **about: further JSON entries of config.json, e.g. the source and its licence.
    """
    tree = {
        "params": params,
        "buffers": _whole(flow.buffers),
        "prior": {"loc": flow.prior.loc, "scale": flow.prior.scale},
    }
    tree |= {"extras": extras} if extras else {}
    options = flow.spec.to_json()["options"]
    for name, usual in (
        ("transformer", "affine"),
        ("dials", []),
        ("dial_heads", False),
        ("directions", 0),
    ):  # left out, so that earlier releases read it
        if options.get(name) == usual:
            del options[name]
    config = {"kind": "flow", "blocks": list(flow.prior.blocks), "cond_dim": flow.cond_dim, "options": options}
    config |= {} if flow.spec.kind == PAPER else {"flow": flow.spec.kind}
    weights.save_weights(folder, jax.tree.map(np.asarray, _by_name(tree)), {**about, **config})


def load_flow(folder: str | Path, *, trust: str | Iterable[str] = ()) -> tuple[Density, PyTree]:
    """Reads a flow folder, e.g. a converted official checkpoint.

    Args:
      folder: written by `save_flow`.
      trust: packages outside the library whose code it may name, which is then imported.

    Returns:
      (flow, params), as `init_flow`.

    Raises:
      FileNotFoundError: no such folder or file.
      ValueError: not a flow, of a package that is not trusted, truncated or altered, options unknown, or arrays
        missing, unexpected, misshapen, mistyped or not finite.
    """
    config = weights.read_config(folder)
    if config.get("kind") != "flow":
        raise ValueError(f"{folder}: holds a {config.get('kind')}, expected a flow. Choose another folder.")
    parts.check_trusted(str(folder), named_in([{"kind": config.get("flow", PAPER)}, config["options"]]), trust)
    tree, _ = weights.load_weights(folder)
    tree.pop("extras", None)
    prior = Prior.standard(*config["blocks"])
    saved = {name: tree.get("prior", {}).get(name) for name in ("loc", "scale")}
    if all(np.shape(value) == (prior.dim,) for value in saved.values()):  # else it is told with the rest
        prior = prior.replace(**jax.device_put(saved))
    options = {"kind": config.get("flow", PAPER), **config["options"]}
    with documents.one_sentence(folder, "no flow can be made of its config.json", advice="Copy the folder again."):
        module = build_module(prior, cond_dim=config["cond_dim"], **options)
        drawn = _drawn(module)
        shapes = jax.eval_shape(_whole, drawn) | {"prior": {"loc": prior.loc, "scale": prior.scale}}
    weights.check_tree(str(folder), tree, _by_name(shapes), converter=config.get("converter", "the training"))
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    if bad := [name for name, value in flat.items() if not np.all(np.isfinite(value))]:
        raise ValueError(f"{folder}: {bad[0]} holds NaN or infinite values. Choose another checkpoint, or train again.")
    tree = jax.tree_util.tree_map_with_path(lambda path, _: flat[_name(path)], shapes)
    params, buffers = jax.device_put((tree["params"], _apart(tree["buffers"], like=drawn["buffers"])))
    return _join(module, buffers, prior), params


def _join(module: Any, buffers: PyTree, prior: Prior) -> Any:
    """Networks with their prior: a map, unless they say that they make another density."""
    return getattr(module, "flow_class", Flow)(buffers=buffers, prior=prior, module=module)


def _whole(tree: PyTree) -> PyTree:
    """A tree with one array in place of every `Stack`."""
    return jax.tree.map(lambda leaf: leaf.whole() if _is_stack(leaf) else leaf, tree, is_leaf=_is_stack)


def _apart(tree: PyTree, *, like: PyTree) -> PyTree:
    """The other way round: with a `Stack` wherever a tree like it has one."""
    return jax.tree.map(lambda made, leaf: Stack.of(leaf) if _is_stack(made) else leaf, like, tree, is_leaf=_is_stack)


def _is_stack(leaf: Any) -> bool:
    return isinstance(leaf, Stack)


def _by_name(tree: PyTree) -> dict:
    """The leaves of a pytree as nested dicts, which a file can hold; of nested dicts the same."""
    named = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return flax.traverse_util.unflatten_dict(named, sep="/")


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
