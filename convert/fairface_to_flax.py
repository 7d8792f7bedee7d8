"""Converts the FairFace classifier of seven races, two genders and nine age bands.

    python convert/fairface_to_flax.py res34_fair_align_multi_7_20190809.pt ported_weights/fairface

The file for four races beside it has the same tensors, so it cannot be told apart; its races would be mislabelled.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import layers, reading
from promptgen_jax.models import resnet
from promptgen_jax.store.catalogue import FAIRFACE_ATTRIBUTES


def recipe() -> dict[str, reading.Part]:
    """Targets of `resnet.FairFace`: a ResNet-34 of torchvision."""
    return {**resnet.trunk_recipe(resnet.TORCHVISION, {"bottleneck": False}), "head": layers.dense("fc")}


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads the official file.

    Returns:
      (tree, config) for `promptgen_jax.models.resnet.FairFace`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    tensors = reading.read_state(source, "res34_fair_align_multi_7_20190809.pt of FairFace")
    return reading.checked_network(
        source,
        reading.build_tree(source, tensors, recipe(), layers.unused(tensors)),
        module="resnet.FairFace",
        attributes={name: list(labels) for name, labels in FAIRFACE_ATTRIBUTES.items()},
        image_size=224,
        about="FairFace: ResNet-34 with 18 logits, for apparent race, gender presentation and age. It judges the "
        "whole frame without aligning faces, as the paper's code does. Its groups are those of its annotators: no "
        "statement about who somebody is, and no basis for decisions about people.",
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    description = "Converts the FairFace classifier to a weight folder."
    return reading.run(convert, argv, description, script="fairface_to_flax.py")


if __name__ == "__main__":
    sys.exit(main())
