"""Head pose that follows the condition: squared angle on SO(3) between the pose seen and the pose asked (Eq. 4)."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import struct

from promptgen_jax import checks
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.ops import rotations
from promptgen_jax.types import Aim, Array, Sample, Spec, spec_field

ANGLES = {"geodesic": rotations.geodesic_angle, "official": rotations.official_angle}


@struct.dataclass
class RotationControl:
    """E(x, rho) = angle(R(rho) R0, R(x))², in radians squared, with R(rho) = Rx(rho_0) Ry(rho_1) Rz(rho_2).

    R(x) is what the network reads, R0 the canonical pose at rho = 0. Conditions of fewer than three angles leave the
    last ones at 0.
    """

    network: Network
    weight: float
    canonical: Array
    name: str = struct.field(pytree_node=False)
    angle: str = struct.field(pytree_node=False, default="geodesic")
    needs_reference: bool = struct.field(pytree_node=False, default=False)
    spec: Spec | None = spec_field()

    @property
    def aims(self) -> tuple[Aim, ...]:
        """The head's rotation, which follows the condition."""
        return (Aim(self.network, "rotation", unit="degrees", follows=True),)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network that it is made of."""
        return (self.network,)

    def __call__(self, key: Array, sample: Sample) -> Array:
        """Energies (B,), radians squared; 0 is the exact pose. `key` is not used.

        Raises:
          ValueError: no condition, or one of more than three angles.
        """
        del key
        if sample.cond is None or sample.cond.shape[-1] > 3:
            got = "none" if sample.cond is None else sample.cond.shape
            raise ValueError(
                f"control {self.name}: condition is {got}; expected (batch, up to 3) angles. Give the LatentEBM a "
                "cond_prior of head poses, in a config `condition`."
            )
        return squared_angle(sample.cond, self.canonical, self.network(sample.images)["rotation"], self.angle)

    def pose(self, images: Array) -> Array:
        """Angles (B, 3), radians, that the network reads from images relative to the canonical pose, as in rho."""
        return rotations.to_euler_xyz(rotations.compose(self.network(images)["rotation"], self.canonical.T))


def squared_angle(cond: Array, canonical: Array, seen: Array, angle: str = "geodesic") -> Array:
    """angle(R(cond) canonical, seen)² (B,) of conditions (B, up to 3), a rotation (3, 3) and rotations (B, 3, 3)."""
    angles = jnp.pad(cond, ((0, 0), (0, 3 - cond.shape[-1])))
    return ANGLES[angle](rotations.compose(rotations.from_euler_xyz(angles), canonical), seen) ** 2


def build(
    *,
    network: str | Network = "facemesh",
    canonical: Sequence[float] = (0.25, 0.0, 0.0),
    angle: str = "geodesic",
    weight: float = 1.0,
    name: str = "pose",
    precision: str = "",
) -> RotationControl:
    """Aims at the pose that each condition asks for.

    Args:
      network: one that reads a head's `rotation`: `facemesh` or `deca`, by name or folder, or loaded.
      canonical: Euler angles XYZ in radians of the pose at condition 0. A frontal face is (0.25, 0, 0) to facemesh;
        the paper's code has (0.3, 0, 0) for DECA.
      angle: "geodesic", or "official", which is off by up to 0.007 at agreement and near a half turn.
      weight: the paper's lambda.
      name: of the control.
      precision: of the network's products, see `load_network`.

    Raises:
      FileNotFoundError, ValueError: unknown or damaged network, or one that reads no rotation; a wrong option.
    """
    checks.check_known(f"control {name}: angle", angle, ANGLES)
    if len(canonical) != 3:
        raise ValueError(f"control {name}: canonical is {canonical}; expected three Euler angles in radians.")
    return RotationControl(
        network=load_network(network, precision=precision).that_returns("rotation"),
        weight=jnp.float32(weight),
        canonical=rotations.from_euler_xyz(jnp.asarray(canonical, jnp.float32)),
        name=name,
        angle=angle,
    )


def tiny() -> RotationControl:
    """One for tests: heads as the condition says."""
    return build()
