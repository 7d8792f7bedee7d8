"""Converts the FairFace classifiers: of seven races, two genders and nine age bands, or of four races.

    python convert/fairface_to_flax.py res34_fair_align_multi_7_20190809.pt ported_weights/fairface
    python convert/fairface_to_flax.py res34_fair_align_multi_4_20190809.pt ported_weights/fairface_four

Both have 18 outputs, so their tensors do not tell them apart: their names do, or --races. Of the network for four races
the first four outputs are taken, the only ones that the official predict.py reads.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import layers, reading
from promptgen_jax.models import resnet
from promptgen_jax.store.catalogue import FAIRFACE_ATTRIBUTES, FAIRFACE_FOUR

NAMES = {resnet.RACES: r"multi_7_", resnet.FEW_RACES: r"multi_4_|4race"}  # of the official files
SEVEN, FOUR = (
    "18 logits, for apparent race, gender presentation and age",
    "4 logits, for apparent race: the first 4 of the 18 in the file, as the official predict.py reads no others of it",
)
ABOUT = (
    "FairFace: ResNet-34 with {}. It judges the whole frame without aligning faces, as the paper's code does. Its "
    "groups are those of its annotators: no statement about who somebody is, and no basis for decisions about people."
)


def recipe() -> dict[str, reading.Part]:
    """Targets of `resnet.FairFace`: a ResNet-34 of torchvision."""
    return {**resnet.trunk_recipe(resnet.TORCHVISION, {"bottleneck": False}), "head": layers.dense("fc")}


def count_races(source: str | Path) -> int:
    """7 or 4, as the name of an official file says. Raises ValueError if it is that of neither."""
    found = [races for races, name in NAMES.items() if re.search(name, Path(source).name)]
    if len(found) != 1:
        raise ValueError(
            f"{source}: a FairFace, but whether for seven or for four races neither its tensors nor its name tell. "
            "Pass --races 7 or --races 4."
        )
    return found[0]


@reading.one_door
def convert(source: str | Path, *, races: int | None = None) -> tuple[dict, dict]:
    """Reads an official file.

    Args:
      source: the file.
      races: 7 or 4, where its name does not tell.

    Returns:
      (tree, config) for `promptgen_jax.models.resnet.FairFace`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, another model, or one of which nothing tells its races.
    """
    tensors = reading.read_state(source, "res34_fair_align_multi_7_20190809.pt of FairFace")
    tree, config = reading.checked_network(
        source,
        reading.build_tree(source, tensors, recipe(), layers.unused(tensors)),
        module="resnet.FairFace",
        attributes={name: list(labels) for name, labels in FAIRFACE_ATTRIBUTES.items()},
        image_size=224,
        about=ABOUT.format(SEVEN),
    )
    if races:
        config["flags"] = f"--races {races}"
    if (races or count_races(source)) == resnet.FEW_RACES:
        tree["head"] = {name: leaf[..., : resnet.FEW_RACES] for name, leaf in tree["head"].items()}
        attributes = {name: list(labels) for name, labels in FAIRFACE_FOUR.items()}
        config |= {"options": {"races": resnet.FEW_RACES}, "attributes": attributes, "about": ABOUT.format(FOUR)}
    return tree, config


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    description = "Converts the FairFace classifier to a weight folder."
    options = {"--races": {"type": int, "choices": tuple(NAMES), "help": "where the name of the file does not tell"}}
    return reading.run(convert, argv, description, script="fairface_to_flax.py", options=options)


if __name__ == "__main__":
    sys.exit(main())
