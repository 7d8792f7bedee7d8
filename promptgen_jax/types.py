"""The nouns of the paper that everything shares: `Prior`, `Sample`, and the contracts of generators and controls.

Arrays are batched along the first axis. Latents are flat `(B, D)`; images are `(B, H, W, 3)` in [0, 1].
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.core import FrozenDict

Array = jax.Array
PyTree = Any

FOLLOWS = "follows"  # marks fields that follow from the others or are remarks: parts that differ in them are the same
OUTPUTS = {"images": "pictures", "points": "coordinates without a picture", "mesh": "coordinates, rendered to be seen"}
LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True)
class Spec:
    """What a part is: enough to say it to people and to build it again.

    Attributes:
      kind: name of its file (`pose`), or dotted name of a module outside the library.
      options: all options of its `build`, those left out at their defaults, as plain values.
    """

    kind: str
    options: FrozenDict = FrozenDict()

    @classmethod
    def of(cls, kind: str, options: Mapping[str, Any]) -> Spec:
        """A spec of options that may hold arrays, lists and parts; networks are kept by name and checksum."""
        return cls(kind, FrozenDict({name: _plain(value) for name, value in options.items()}))

    def to_json(self) -> dict:
        """The spec as JSON."""
        return {"kind": self.kind, "options": self.options.unfreeze()}


def _plain(value):
    """A value as None, bool, number, text, tuple or FrozenDict of such, which can be hashed and written as JSON."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return FrozenDict({str(name): _plain(each) for name, each in value.items()})
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return tuple(_plain(each) for each in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return " ".join(filter(None, (getattr(value, "name", type(value).__name__), getattr(value, "checksum", ""))))


def spec_field():
    """The field of a part in which `parts.load` writes its `Spec`; None where it was made by hand."""
    return struct.field(pytree_node=False, default=None, repr=False, metadata={FOLLOWS: True})


@struct.dataclass
class Prior:
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
        return cls(loc=jnp.zeros(dim, jnp.float32), scale=jnp.ones(dim, jnp.float32), blocks=tuple(blocks))

    @property
    def dim(self) -> int:
        """D, the length of a latent."""
        return sum(self.blocks)

    def sample(self, key: Array, num_samples: int) -> Array:
        """Draws (num_samples, D) latents."""
        return self.loc + self.scale * jax.random.normal(key, (num_samples, self.dim), jnp.float32)

    def log_prob(self, z: Array) -> Array:
        """Log density in nats, (B,), of latents (B, D)."""
        standardised = (z - self.loc) / self.scale
        return -jnp.sum(0.5 * standardised**2 + jnp.log(self.scale) + 0.5 * LOG_2PI, axis=-1)


@struct.dataclass
class Conditions:
    """Uniform distribution of conditions on a box of R^A, e.g. of head poses; the canonical condition is 0.

    Attributes:
      low: (A,) one corner of the box, for angles in radians.
      high: (A,) the other; equal to `low` where a component is fixed.
      names: A names for people.
    """

    low: Array
    high: Array
    names: tuple[str, ...] = struct.field(pytree_node=False, default=())

    @classmethod
    def of_angles(cls, degrees: dict[str, tuple[float, float]]) -> Conditions:
        """From ranges in degrees by name, e.g. `{"nod": (-20, 20), "turn": (-20, 20)}`.

        Raises:
          ValueError: no range, or one that is no pair from low to high.
        """
        for name, ends in degrees.items():
            if len(ends) != 2 or not ends[0] <= ends[1]:
                raise ValueError(f"condition {name}: range is {ends}; expected (low, high) in degrees.")
        if not degrees:
            raise ValueError("conditions: no ranges; give at least one, e.g. {'turn': (-20, 20)} in degrees.")
        low, high = np.radians(np.array(list(degrees.values()), np.float32)).T
        return cls(low=jnp.asarray(low), high=jnp.asarray(high), names=tuple(degrees))

    @property
    def dim(self) -> int:
        """A, the length of a condition."""
        return self.low.shape[0]

    def sample(self, key: Array, num_samples: int) -> Array:
        """Draws (num_samples, A) conditions."""
        return jax.random.uniform(key, (num_samples, self.dim), jnp.float32, self.low, self.high)

    def grid(self, size: int = 3) -> np.ndarray:
        """(size^V, A) conditions evenly spread over the V components that vary, the last one fastest."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        axes = [np.linspace(a, b, size if a < b else 1) for a, b in zip(low, high, strict=True)]
        return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, self.dim).astype(np.float32)


@struct.dataclass
class Sample:
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
    """

    network: Any
    output: str
    labels: tuple[str, ...] = ()
    target: tuple[tuple[str, float], ...] = ()
    unit: str = ""
    follows: bool = False


def aims_of(control) -> tuple[Aim, ...]:
    """What a control says it is about; nothing if it says nothing, as own code need not."""
    return tuple(getattr(control, "aims", ()))


def networks_of(control) -> tuple:
    """The ported networks that a control is made of, as it says; none of own code that says nothing."""
    return tuple(getattr(control, "networks", ()))


def makes(generator) -> str:
    """What a generator makes, a key of `OUTPUTS`: images, if it does not say."""
    return getattr(generator, "makes", "images")


def view(generator, made: Any) -> Any:
    """What a generator made, as pictures (B, H, W, 3): as its own `view` shows it, if it has one."""
    return generator.view(made) if hasattr(generator, "view") else made


@runtime_checkable
class Generator(Protocol):
    """A frozen generator `x = G(z)`: a callable pytree whose leaves are its weights.

    The same key gives the same image; key feeds layer noise, cameras and the like. `name` and `checksum`
    identify the weights, so that a saved prompt can find and verify its generator. One whose samples are no pictures
    also says what it `makes`, a key of `OUTPUTS`, and, if people can look at them all the same, has a method
    `view(made)` from samples to pictures (B, H, W, 3).
    """

    prior: Prior
    image_size: int
    name: str
    checksum: str

    def __call__(self, key: Array, z: Array) -> Array:
        """Latents (B, D) to images (B, H, W, 3), nominally in [0, 1], not clamped."""


@runtime_checkable
class Control(Protocol):
    """A named, weighted energy on samples: a callable pytree whose leaves are its weights.

    `weight` is the paper's lambda. `needs_reference` asks for `sample.reference`. It may also say its `aims`, a tuple
    of `Aim`, by which it is measured, and its `networks`, whose licences a report then names.
    """

    name: str
    weight: float
    needs_reference: bool

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,) in nats before weighting; lower is better."""
