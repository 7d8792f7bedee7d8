"""Converts the InceptionV3 of FID to a weight folder.

python convert/inception_to_flax.py pt_inception-2015-12-05-6726825d.pth ported_weights/inception
"""

from __future__ import annotations

import sys
from pathlib import Path

import flax.traverse_util
import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import layers, reading
from promptgen_jax.models import inception, network

EPSILON = 1e-3  # of its batch normalisations
HEAD = ("fc.weight", "fc.bias")  # logits of 1,008 classes, which FID does not read


def recipe() -> dict[str, reading.Part]:
    """Targets of `inception.InceptionV3`, whose layers have their official names."""
    tree = network.expected_tree(inception.InceptionV3(), jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
    names = [
        path.removesuffix("/kernel") for path in flax.traverse_util.flatten_dict(tree, sep="/") if "kernel" in path
    ]
    official = {name: name.replace("/", ".") for name in names}
    return {name: layers.conv_norm(f"{layer}.conv", f"{layer}.bn", epsilon=EPSILON) for name, layer in official.items()}


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads the official file.

    Returns:
      (tree, config) for `promptgen_jax.models.inception.InceptionV3`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    tensors = reading.read_state(source, "pt_inception-2015-12-05-6726825d.pth")
    return reading.checked_network(
        source,
        reading.build_tree(source, tensors, recipe(), [*layers.unused(tensors), *HEAD]),
        module="inception.InceptionV3",
        image_size=inception.SIZE,
        about="InceptionV3 of 2015, learnt from ImageNet: 2,048 features of a picture, for the Fréchet and the kernel "
        "Inception distance.",
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(
        convert, argv, "Converts the InceptionV3 of FID to a weight folder.", script="inception_to_flax.py"
    )


if __name__ == "__main__":
    sys.exit(main())
