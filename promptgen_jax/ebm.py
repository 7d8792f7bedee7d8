"""`LatentEBM`: the one definition of the target, p(z|C) ∝ p_z(z) exp(-E_C(G(z))) (Eq. 1-2 of arXiv 2209.06970)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.flows.conditions import Conditions
from promptgen_jax.types import Array, Control, Generator, PyTree, Sample


class LatentEBM(struct.PyTreeNode):
    """A generator under control.

    A condition that is a strength is a dial: it scales the energy of the control of its name, so that the target is
    p(z|s) ∝ p_z(z) exp(-Σ_i s_i λ_i E_i(G(z))).

    Attributes:
      generator: frozen, any object of the `Generator` contract (a trained `Prompt` is one).
      controls: objects of the `Control` contract; their weighted energies add up.
      cond_prior: distribution of conditions, a `Conditions`, or None without conditions.
    """

    generator: Generator
    controls: tuple[Control, ...]
    cond_prior: Conditions | None = None

    def __post_init__(self) -> None:
        """Raises TypeError for a control that is not in a tuple, or the name of a generator."""
        if isinstance(self.generator, str):
            name = self.generator
            raise TypeError(
                f"LatentEBM: generator is {name!r}; expected the object. Write pg.load_generator({name!r})."
            )
        if callable(self.controls):
            kind = type(self.controls).__name__
            raise TypeError(f"LatentEBM: controls is a {kind}; expected a tuple of controls. Write (control,).")

    def images(self, key: Array, z: Array) -> Array:
        """Images (B, H, W, 3) of latents (B, D), with the same generator noise as `energy` under this key.

        With keys (B,), one per sample, every image is a function of its own key and latent, whatever the batch.
        """
        return _each(lambda key, z: self.generator(_named_key(key, "generator"), z), key, z)

    def draw_cond(self, key: Array, num_samples: int) -> Array | None:
        """Conditions (num_samples, A), or None."""
        return None if self.cond_prior is None else self.cond_prior.sample(key, num_samples)

    def energies(
        self, key: Array, z: Array, cond: Array | None = None, reference_z: Array | None = None
    ) -> dict[str, Array]:
        """Unweighted energy (B,) of every control by name.

        Each control draws from a key of its own name, so adding one leaves the others' draws alone.

        Args:
          key: generator noise and augmentations; the same key gives the same energies. One, or one per sample (B,).
          z: (B, D) latents.
          cond: (B, A) conditions, or None.
          reference_z: (B, D) latents of the reference images (Eq. 12), used if some control needs them.

        Raises:
          ValueError: a control needs a reference and there is none, or two controls share a name.
        """
        reference = None
        if self.needs_reference:
            if reference_z is None:
                raise ValueError("LatentEBM: a control needs a reference image; pass reference_z, the latents of it.")
            reference = self.images(key, reference_z)
        return self.energies_of(key, Sample(images=self.images(key, z), z=z, cond=cond, reference=reference))

    def energies_of(self, key: Array, sample: Sample) -> dict[str, Array]:
        """`energies` of what `images` made under the same key.

        Raises:
          ValueError: two controls share a name, or one gives no energies (B,).
        """
        names = [control.name for control in self.controls]
        if len(set(names)) != len(names):
            raise ValueError(f"LatentEBM: control names {names} are not distinct. Give each control a name of its own.")

        def energies(key: Array, sample: Sample) -> dict[str, Array]:
            found = {control.name: control(_named_key(key, control.name), sample) for control in self.controls}
            for name, energy in found.items():
                if jnp.shape(energy) != (batch := (len(sample.images),)):
                    raise ValueError(
                        f"LatentEBM: control {name} gives energies of shape {jnp.shape(energy)} for {batch[0]} images; "
                        f"expected {batch}, one number for each image."
                    )
            return found

        return _each(energies, key, sample)

    @property
    def dials(self) -> dict[str, int]:
        """Places of the strengths in a condition, by name of the control that each of them scales.

        Raises:
          ValueError: a strength that names no control.
        """
        dials = {} if self.cond_prior is None else self.cond_prior.of_kind("strength")
        for name in dials:
            checks.check_known("LatentEBM: strength of a control", name, [control.name for control in self.controls])
        return dials

    def weights(self, cond: Array | None = None) -> dict[str, Array | float]:
        """What the energy of every control is multiplied by: λ_i, of one with a dial s_i λ_i (B,).

        Args:
          cond: (B, A) conditions; needed if and only if there is a dial.

        Raises:
          ValueError: no conditions though there is a dial, or a strength that names no control.
        """
        weights, dials = {control.name: control.weight for control in self.controls}, self.dials
        if not dials:
            return weights
        if cond is None:
            raise ValueError(f"LatentEBM: condition is none; pass cond, which has the strength of {', '.join(dials)}.")
        return weights | {name: weights[name] * cond[:, place] for name, place in dials.items()}

    def total(self, energies: dict[str, Array], cond: Array | None = None) -> Array:
        """E_C = Σ_i λ_i E_i (B,), nats, of what `energies` returned; of dials Σ_i s_i λ_i E_i."""
        dials, total = self.dials, jnp.zeros(())
        for name, weight in self.weights(cond).items():
            energy = energies[name]
            if name in dials:  # a control that is off does not matter, however far an image is from it
                energy = jnp.where(jnp.isinf(energy) & (weight == 0), 0.0, energy)
            total = total + weight * energy
        return total

    def energy(self, key: Array, z: Array, cond: Array | None = None, reference_z: Array | None = None) -> Array:
        """E_C(G(z)) (B,), nats."""
        return self.total(self.energies(key, z, cond, reference_z), cond)

    def log_prob(self, key: Array, z: Array, cond: Array | None = None, reference_z: Array | None = None) -> Array:
        """Log p_z(z) - E_C(G(z)) (B,), nats: the log density of the target up to log Z."""
        return self.generator.prior.log_prob(z) - self.energy(key, z, cond, reference_z)

    @property
    def needs_reference(self) -> bool:
        """Whether some control compares with a reference image, which the flow itself makes.

        Then the target moves with the flow: there is no fixed density to certify.
        """
        return any(control.needs_reference for control in self.controls)


def check_ebm(where: str, ebm: Any) -> None:
    """Raises TypeError for something else than a target."""
    if not isinstance(ebm, LatentEBM):
        raise TypeError(
            f"{where}: got {type(ebm).__name__} for the target; expected a LatentEBM. Write "
            "pg.LatentEBM(generator, (control,))."
        )


def _each(function: Callable[[Array, Any], Any], key: Array, batch: PyTree) -> Any:
    """`function(key, batch)`, or of every sample alone under its own key if there are several."""
    if not (jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim):
        return function(key, batch)

    def one(key: Array, sample: PyTree) -> Any:
        made = function(key, jax.tree.map(lambda leaf: leaf[None], sample))
        return jax.tree.map(lambda leaf: leaf[0], made)

    return jax.vmap(one)(key, batch)


def _named_key(key: Array, name: str) -> Array:
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
