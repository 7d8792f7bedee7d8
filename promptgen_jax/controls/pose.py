"""Head pose to a fixed target, from landmarks: squared error over sigma (Eq. 4 for small, independent angles)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct

from promptgen_jax import checks
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.types import Aim, Array, Sample, Spec, spec_field

ANGLES = ("yaw", "pitch", "roll")


@struct.dataclass
class PoseControl:
    """E(x) = Σ_angles ½ ((angle(x) - target) / sigma)², angles in degrees; an angle without target is left free."""

    network: Network
    weight: float
    target: Array
    active: Array
    sigma: float
    name: str = struct.field(pytree_node=False)
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def aims(self) -> tuple[Aim, ...]:
        """The angles that have a target."""
        asked = zip(ANGLES, np.asarray(self.target).tolist(), np.asarray(self.active).tolist(), strict=True)
        return (
            Aim(self.network, "pose", target=tuple((name, angle) for name, angle, on in asked if on), unit="degrees"),
        )

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network that it is made of."""
        return (self.network,)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), nats; 0 is the exact pose. `key` is not used."""
        del key
        error = (self.network(sample.images)["pose"] - self.target) / self.sigma
        return 0.5 * jnp.sum(self.active * error**2, axis=-1)


def build(
    *,
    network: str | Network = "facemesh",
    yaw: float | None = None,
    pitch: float | None = None,
    roll: float | None = None,
    sigma: float = 5.0,
    weight: float = 1.0,
    name: str = "pose",
    precision: str = "",
) -> PoseControl:
    """Aims at a pose in degrees; None leaves an angle free. `precision` is that of `load_network`.

    Raises:
      FileNotFoundError, ValueError: unknown or damaged network, or one that reads no pose; no angle given, one
        outside -180 to 180, sigma not positive.
    """
    target = (yaw, pitch, roll)
    if all(angle is None for angle in target):
        raise ValueError(f"control {name}: no target angle; give at least one of {', '.join(ANGLES)} in degrees.")
    for angle_name, angle in zip(ANGLES, target, strict=True):
        if angle is not None:
            checks.check_number(f"control {name}: {angle_name}", angle, -180, 180)
    if not sigma > 0:
        raise ValueError(f"control {name}: sigma is {sigma}; expected a positive number of degrees.")
    return PoseControl(
        network=load_network(network, precision=precision).that_returns("pose"),
        weight=jnp.float32(weight),
        target=jnp.array([angle or 0.0 for angle in target], jnp.float32),
        active=jnp.array([angle is not None for angle in target], jnp.float32),
        sigma=jnp.float32(sigma),
        name=name,
    )


def tiny() -> PoseControl:
    """One for tests: heads turned by 20 degrees."""
    return build(yaw=20.0)
