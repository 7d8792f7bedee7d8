"""Converts IR-SE50, the ArcFace network behind the identity energy.

python convert/irse50_to_flax.py model_ir_se50.pth ported_weights/irse50
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import layers, reading
from promptgen_jax.models import irse


def slope(name: str) -> reading.Part:
    """A PReLU with one slope per channel."""
    return reading.Part((f"{name}.weight",), lambda slope: {"slope": slope})


def squeeze(name: str) -> reading.Part:
    """A 1 x 1 convolution (out, in, 1, 1) of pooled features as a dense layer without bias."""
    return reading.Part((f"{name}.weight",), lambda kernel: {"kernel": kernel[:, :, 0, 0].T})


def embedding_parts() -> reading.Part:
    """The dense layer behind the trunk with the batch normalisation before and after it.

    It reads channel, row, column in the file, and row, column, channel in ours.
    """

    def make(kernel, bias, *statistics):
        scale, shift = layers.affine(*statistics[:4])
        last_scale, last_shift = layers.affine(*statistics[4:])
        wide = np.float64(kernel).reshape(len(kernel), len(scale), -1)
        bias = (bias + wide.sum(axis=2) @ shift) * last_scale + last_shift
        wide = (wide * scale[:, None] * last_scale[:, None, None]).transpose(2, 1, 0).reshape(-1, len(kernel))
        return {"kernel": wide.astype(kernel.dtype), "bias": bias.astype(kernel.dtype)}

    names = ("output_layer.3.weight", "output_layer.3.bias")
    return reading.Part((*names, *layers.norm_parts("output_layer.0"), *layers.norm_parts("output_layer.4")), make)


def recipe() -> dict[str, reading.Part]:
    """Targets of `irse.IRSE50`; the file counts units through all stages."""
    parts = {
        "stem": layers.conv_norm("input_layer.0", "input_layer.1"),
        "stem_activation": slope("input_layer.2"),
        "embedding": embedding_parts(),
    }
    number = 0
    for stage, (_, num_units) in enumerate(irse.STAGES, start=1):
        for index in range(num_units):
            unit, main = f"stage{stage}_unit{index}", f"body.{number}.res_layer"
            parts |= {
                f"{unit}/norm": layers.norm(f"{main}.0"),
                f"{unit}/conv1": layers.conv(f"{main}.1"),
                f"{unit}/activation": slope(f"{main}.2"),
                f"{unit}/conv2": layers.conv_norm(f"{main}.3", f"{main}.4"),
                f"{unit}/squeeze": squeeze(f"{main}.5.fc1"),
                f"{unit}/excite": squeeze(f"{main}.5.fc2"),
            }
            if index == 0 and stage > 1:
                shortcut = f"body.{number}.shortcut_layer"
                parts[f"{unit}/shortcut"] = layers.conv_norm(f"{shortcut}.0", f"{shortcut}.1")
            number += 1
    return parts


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads the official file.

    Returns:
      (tree, config) for `promptgen_jax.models.irse.IRSE50`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    tensors = reading.read_state(source, "model_ir_se50.pth")
    return reading.checked_network(
        source,
        reading.build_tree(source, tensors, recipe(), layers.unused(tensors)),
        module="irse.IRSE50",
        image_size=112,
        about="IR-SE50 trained with ArcFace: an embedding of 512 numbers of length 1, close for pictures of the same "
        "person. It expects faces placed as in FFHQ. For comparing synthetic pictures; not for identifying people.",
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(convert, argv, "Converts IR-SE50 to a weight folder.", script="irse50_to_flax.py")


if __name__ == "__main__":
    sys.exit(main())
