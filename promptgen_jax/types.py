"""Types that the whole library shares: `Prior`, `Sample`, and what generators, controls, flows must be.

Arrays are batched along the first axis. Latents are flat `(B, D)`; images are `(B, H, W, 3)` in [0, 1].
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.core import FrozenDict

Array = jax.Array
PyTree = Any

FOLLOWS = "follows"  # marks fields that follow from the others or are remarks: parts that differ in them are the same
SILENT = "silent"  # marks fields added later, of which fingerprints say nothing at their default: parts keep theirs
OUTPUTS = {"images": "pictures", "points": "coordinates without a picture", "mesh": "coordinates, rendered to be seen"}
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Spec:
    """What a part is: enough to say it to people and to build it again.

    Attributes:
      kind: name of its file (`pose`), or dotted name of a module outside the library.
      options: all options of its `build`, those left out at their defaults, as plain values.
      built: what the fields of the part were then, so that `parts.spec_of` sees what was replaced since.
    """

    kind: str
    options: FrozenDict = FrozenDict()
    built: FrozenDict = field(default=FrozenDict(), compare=False, repr=False)

    @classmethod
    def of(cls, kind: str, options: Mapping[str, Any]) -> Spec:
        """A spec of options that may hold arrays, lists and parts; networks are kept by name and checksum."""
        return cls(kind, plain(options))

    def to_json(self) -> dict:
        """The spec as JSON."""
        return {"kind": self.kind, "options": thaw(self.options)}


def plain(value: Any) -> Any:
    """A value as None, bool, number, text, tuple or FrozenDict of such, which can be hashed and written as JSON."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return FrozenDict({str(name): plain(each) for name, each in value.items()})
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return tuple(plain(each) for each in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    precision = getattr(value, "precision", "float32")
    words = (getattr(value, "name", type(value).__name__), getattr(value, "checksum", ""))
    return " ".join(filter(None, (*words, "" if precision == "float32" else precision)))


def thaw(value: Any) -> Any:
    """What `plain` returns, with dicts and lists that JSON can hold."""
    if isinstance(value, Mapping):
        return {name: thaw(each) for name, each in value.items()}
    return [thaw(each) for each in value] if isinstance(value, tuple) else value


def spec_field() -> Any:
    """The field of a part in which `parts.load` writes its `Spec`; None where it was made by hand."""
    return struct.field(pytree_node=False, default=None, repr=False, metadata={FOLLOWS: True})


def precision_field() -> Any:
    """The field of a part that computes in "float32", "tf32" or "bfloat16", see `ops.products.arithmetic`."""
    return struct.field(pytree_node=False, default="float32", metadata={SILENT: True})


class Stack(tuple):
    """N matrices (..., D, D) that are leaves of their own in a tree, and one array (..., N, D, D) in files.

    A program reads each where it lies, while of one array it would copy every matrix out before the product.
    """

    @classmethod
    def of(cls, whole: Any) -> Stack:
        """The matrices of one array."""
        return cls(whole[..., index, :, :] for index in range(whole.shape[-3]))

    def whole(self) -> Array:
        """The one array."""
        return jnp.stack(self, axis=-3)


jax.tree_util.register_pytree_node(Stack, lambda stack: (tuple(stack), None), lambda _, arrays: Stack(arrays))


class Prior(struct.PyTreeNode):
    """Diagonal normal `p_z = N(loc, diag(scale²))` on R^D; also the base distribution of the flow.

    Attributes:
      loc: (D,) mean.
      scale: (D,) standard deviation, positive.
      blocks: sizes that add up to D; each block of z gets a flow of its own (Eq. 11: noise and class embedding).
    """

    loc: Array = struct.field(repr=False)
    scale: Array = struct.field(repr=False)
    blocks: tuple[int, ...] = struct.field(pytree_node=False)

    @classmethod
    def standard(cls, *blocks: int) -> Prior:
        """`N(0, I)` with the given block sizes, for most generators a single one."""
        dim = sum(blocks)
        loc, scale = jax.device_put((np.zeros(dim, np.float32), np.ones(dim, np.float32)))  # compiles nothing
        return cls(loc=loc, scale=scale, blocks=tuple(blocks))

    @property
    def dim(self) -> int:
        """D, the length of a latent."""
        return sum(self.blocks)

    def sample(self, key: Array, num_samples: int) -> Array:
        """Draws (num_samples, D) latents."""
        return self.loc + self.scale * jax.random.normal(key, (num_samples, self.dim), jnp.float32)

    @jax.jit
    def log_prob(self, z: Array) -> Array:
        """Log density in nats, (B,), of latents (B, D)."""
        standardised = (z - self.loc) / self.scale
        return -jnp.sum(0.5 * standardised**2 + jnp.log(self.scale) + 0.5 * LOG_2PI, axis=-1)


class Sample(struct.PyTreeNode):
    """What a control sees of a batch.

    Attributes:
      images: (B, H, W, 3) float32, nominally in [0, 1] and not clamped.
      z: (B, D) the latents that made them.
      cond: (B, A) conditions such as Euler angles in radians, or None.
      reference: (B, H, W, 3) the same eps at the canonical condition (Eq. 12), of a flow without conditions before the
        control, or None.
    """

    images: Array
    z: Array
    cond: Array | None = None
    reference: Array | None = None


@dataclass(frozen=True)
class Aim:
    """What a control is about, so that a measurement finds it without knowing the control.

    Attributes:
      network: what reads it from images: a `Network`, or another callable with a `name`.
      output: which of the network's outputs; of a classifier the attribute.
      labels: those of the attribute's labels that the control asks for or avoids.
      target: (label or component, wanted value) pairs: shares by label, angles by name.
      unit: of the target's values: "share", "degrees" or "".
      follows: whether it is the condition that says what is wanted; the control's `pose(images)` then reads the same
        components (B, A), in the unit of conditions.
      count: of shares with a target: "soft" if mean probabilities are meant, "hard" if first choices.
    """

    network: Any
    output: str
    labels: tuple[str, ...] = ()
    target: tuple[tuple[str, float], ...] = ()
    unit: str = ""
    follows: bool = False
    count: str = "soft"


UNSAID = {  # what is taken of a part that does not say it, as own code need not
    "aims": (),
    "networks": (),
    "license": "",
    "checksum": "",
    "spec": None,
    "makes": "images",
    "view": lambda made: made,
}


def said(part: object, name: str) -> Any:
    """What a part says of itself, or what is taken if it says nothing; `name` is a key of `UNSAID`."""
    return getattr(part, name, UNSAID[name])


def aims_of(control: Control) -> tuple[Aim, ...]:
    """What a control says it is about."""
    return tuple(said(control, "aims"))


def networks_of(control: Control) -> tuple:
    """The ported networks that a control is made of, as it says."""
    return tuple(said(control, "networks"))


def makes(generator: Generator) -> str:
    """What a generator makes, a key of `OUTPUTS`."""
    return said(generator, "makes")


def view(generator: Generator, made: Any) -> Any:
    """What a generator made, as pictures (B, H, W, 3)."""
    return said(generator, "view")(made)


@runtime_checkable
class Generator(Protocol):
    """A frozen generator `x = G(z)`: a callable pytree whose leaves are its weights.

    The same key gives the same image; key feeds layer noise, cameras and the like. `name` and `checksum`
    identify the weights, so that a saved prompt can find and verify its generator. One whose samples are no pictures
    also says what it `makes`, a key of `OUTPUTS`, and, if people can look at them all the same, has a method
    `view(made)` from samples to pictures (B, H, W, 3).
    """

    @property
    def prior(self) -> Prior:
        """Distribution of its latents."""

    @property
    def image_size(self) -> int:
        """Pixels a side; 1 where samples are no pictures."""

    @property
    def name(self) -> str:
        """Name of the weights."""

    @property
    def checksum(self) -> str:
        """Checksum of the weights, "" if there are none."""

    def __call__(self, key: Array, z: Array) -> Array:
        """Latents (B, D) to images (B, H, W, 3), nominally in [0, 1], not clamped."""


@runtime_checkable
class Control(Protocol):
    """A named, weighted energy on samples: a callable pytree whose leaves are its weights.

    `weight` is the paper's lambda. `needs_reference` asks for `sample.reference`. It may also say its `aims`, a tuple
    of `Aim`, by which it is measured, and its `networks`, whose licences a report then names.
    """

    @property
    def name(self) -> str:
        """Name of the control, of which a target has no other."""

    @property
    def weight(self) -> float | Array:
        """Factor lambda of the energy."""

    @property
    def needs_reference(self) -> bool:
        """Whether it compares with an image that the flow itself makes."""

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,) in nats before weighting; lower is better."""


@runtime_checkable
class Constraint(Control, Protocol):
    """A control with the energy -beta · gamma(x), whose beta (K,) makes the mean of gamma mu (K,), Eq. 5-7.

    NaN in mu leaves a share to the generator, as `training.fit_moments` finds it there.
    """

    @property
    def beta(self) -> Array:
        """(K,) factors of what is constrained."""

    @property
    def mu(self) -> Array:
        """(K,) wanted means of it."""

    def gamma(self, images: Array) -> Array:
        """What is constrained, (B, K), of images (B, H, W, 3)."""


def constraints_of(controls: Iterable[Control]) -> tuple[Constraint, ...]:
    """Those of several controls whose energy is a moment constraint."""
    return tuple(control for control in controls if isinstance(control, Constraint))


@runtime_checkable
class Following(Control, Protocol):
    """A control with the energy -beta(cond) · gamma(x): linear in what does not depend on the condition."""

    @property
    def lift(self) -> Array:
        """What is added to beta while a flow trains; the gradient of the energy by it tells the gap to mu."""

    def gamma(self, images: Array) -> Array:
        """What the energy is linear in, (B, K), of images (B, H, W, 3)."""

    def slopes(self, cond: Array) -> Array:
        """The beta (B, K) of conditions (B, A)."""


def following(controls: Iterable[Control]) -> tuple[Following, ...]:
    """Those of several controls whose energy is linear in what does not depend on the condition."""
    return tuple(control for control in controls if isinstance(control, Following))


@runtime_checkable
class Density(Protocol):
    """What a trained prior is at least: a density on latents that draws exactly, as pure functions of its params.

    Samples are a function of noise: the same noise shows the same person. A mixture of flows is one.
    """

    @property
    def prior(self) -> Prior:
        """Base distribution, the generator's own prior."""

    @property
    def buffers(self) -> PyTree:
        """Arrays that stay as they were drawn."""

    @property
    def spec(self) -> Spec:
        """Kind and complete options."""

    @property
    def cond_dim(self) -> int:
        """A, length of a condition; 0 if it takes none."""

    def sample_and_log_prob(
        self, params: PyTree, key: Array, num_samples: int, cond: Array | None = None
    ) -> tuple[Array, Array]:
        """Draws latents (num_samples, D) and their exact log density (num_samples,), nats."""

    def log_prob(self, params: PyTree, z: Array, cond: Array | None = None) -> Array:
        """Exact log density (B,), nats, of latents (B, D)."""

    def forward_and_log_det(self, params: PyTree, eps: Array, cond: Array | None = None) -> tuple[Array, Array]:
        """Noise (B, D) to latents (B, D) and log p(eps) - log q(z) (B,), nats: of a map its log abs det of dz/deps."""

    def forward_and_log_dets(
        self, params: PyTree, eps: Array, cond: Array | None = None
    ) -> tuple[Array, tuple[Array, ...]]:
        """The same, with one term (B,) for each flow that the prior's blocks have; they add up."""


@runtime_checkable
class Invertible(Density, Protocol):
    """A density that is an invertible map of its noise: for editing, and for prompts on prompts."""

    def inverse_and_log_det(self, params: PyTree, z: Array, cond: Array | None = None) -> tuple[Array, Array]:
        """Latents (B, D) to the noise (B, D) behind them and log abs det of deps/dz (B,), nats."""
