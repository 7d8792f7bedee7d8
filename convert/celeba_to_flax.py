"""Converts PromptGen's CelebA classifiers, one file per attribute.

    python convert/celeba_to_flax.py celeba/Male/best.pth ported_weights/celeba_male

All files are called best.pth: which attribute it is shows in the folder that celeba.zip puts it in.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import layers, reading
from promptgen_jax import checks
from promptgen_jax.models import resnet
from promptgen_jax.store.catalogue import BINARY

ATTRIBUTES = """
5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair Blurry
Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
Wearing_Necktie Young
""".split()


def recipe() -> dict[str, reading.Part]:
    """Targets of `resnet.CelebA`: a ResNet-50 of torchvision under `resnet`, and one more dense layer."""
    trunk = resnet.trunk_recipe(resnet.TORCHVISION, {"bottleneck": True}, prefix="resnet.")
    return {**trunk, "hidden": layers.dense("resnet.fc"), "head": layers.dense("fc")}


def attribute_of(source: str | Path) -> str:
    """The attribute that an official file is about. Raises ValueError if its folder has no name of one."""
    attribute = Path(source).resolve().parent.name
    try:
        checks.check_known("its folder", attribute, ATTRIBUTES)
    except ValueError as error:
        raise ValueError(
            f"{source}: {error} Put it into a folder of the attribute's official name, e.g. celeba/Male/best.pth."
        ) from None
    return attribute


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads an official file.

    Returns:
      (tree, config) for `promptgen_jax.models.resnet.CelebA`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, another model, or in a folder that names no attribute.
    """
    tensors = reading.read_state(source, "best.pth of one attribute, from celeba.zip", "model")
    attribute = attribute_of(source)
    return reading.checked_network(
        source,
        reading.build_tree(source, tensors, recipe(), layers.unused(tensors)),
        module="resnet.CelebA",
        options={"attribute": attribute},
        attributes={attribute: list(BINARY)},
        image_size=224,
        about=f"PromptGen's classifier of the attribute {attribute} of CelebA: ResNet-50, a hidden layer of 2,048 and "
        "one logit, learnt from photographs of celebrities. It repeats what annotators saw in a picture; no basis for "
        "decisions about people.",
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    description = "Converts a CelebA attribute classifier to a weight folder."
    return reading.run(convert, argv, description, script="celeba_to_flax.py")


if __name__ == "__main__":
    sys.exit(main())
