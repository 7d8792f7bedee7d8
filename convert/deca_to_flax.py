"""Converts the coarse encoder of DECA, which estimates head pose among other coefficients.

    python convert/deca_to_flax.py deca_model.tar ported_weights/deca

The file is no tar archive but one torch.save. Its detail networks are not read, and FLAME is not needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import layers, reading
from promptgen_jax.models import resnet


def recipe() -> dict[str, reading.Part]:
    """Targets of `deca.DECA`."""
    trunk = resnet.trunk_recipe(resnet.TORCHVISION, {"bottleneck": True}, prefix="encoder.")
    return {**trunk, "hidden": layers.dense("layers.0"), "head": layers.dense("layers.2")}


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads the official file.

    Returns:
      (tree, config) for `promptgen_jax.models.deca.DECA`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    tensors = reading.read_state(source, "deca_model.tar of DECA", "E_flame")
    return reading.checked_network(
        source,
        reading.build_tree(source, tensors, recipe(), layers.unused(tensors)),
        module="deca.DECA",
        image_size=224,
        about="The coarse encoder of DECA: ResNet-50 from a face to 236 coefficients of FLAME, its texture, camera and "
        "light; the first three of pose are the rotation of the head. It expects faces that fill the frame.",
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(convert, argv, "Converts DECA's coarse encoder to a weight folder.", script="deca_to_flax.py")


if __name__ == "__main__":
    sys.exit(main())
