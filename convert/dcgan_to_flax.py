"""Converts the DCGAN generator of the package gan_face_generate (chien-liu/DCGAN-PyTorch) to Flax.

    python convert/dcgan_to_flax.py weights.tar ported_weights/dcgan_digiface

Batch normalisation is folded into kernels and biases. Needs torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import layers, reading
from promptgen_jax.store import weights

BATCH_NORM_EPSILON = 1e-5
CONVOLUTIONS = (0, 3, 6, 9, 12)


def fold(kernel, gamma, beta, mean, variance) -> dict:
    """Transposed convolution and the batch normalisation behind it as one kernel and bias.

    A torch kernel is (in, out, height, width) and is applied flipped; ours is HWIO and is not. The first layer sees
    one pixel and is not flipped: its kernel is (4, 4, latent, out).
    """
    scale = gamma / np.sqrt(variance + BATCH_NORM_EPSILON)
    return {"kernel": kernel * scale, "bias": beta - mean * scale}


def project_kernel(kernel):
    """(in, out, height, width) to (height, width, in, out)."""
    return kernel.transpose(2, 3, 0, 1)


def upsample_kernel(kernel):
    """(in, out, height, width) to flipped HWIO."""
    return kernel[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)


def recipe(convolutions: tuple[int, ...] = CONVOLUTIONS) -> dict[str, reading.Part]:
    """Targets of `dcgan.DCGAN` and their sources.

    Args:
      convolutions: their numbers in the sequence `main`; behind each but the last stands a batch normalisation.
    """
    parts = {}
    for layer, index in enumerate(convolutions[:-1], start=1):
        sources = (f"main.{index}.weight", *layers.norm_parts(f"main.{index + 1}"))
        layout = project_kernel if layer == 1 else upsample_kernel
        parts[f"layer{layer}"] = reading.Part(sources, lambda kernel, *norm, layout=layout: fold(layout(kernel), *norm))
    parts[f"layer{len(convolutions)}"] = reading.Part(
        (f"main.{convolutions[-1]}.weight",),
        lambda kernel: {
            "kernel": upsample_kernel(kernel),
            "bias": np.zeros(kernel.shape[1], np.float32),
        },
    )
    return parts


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads `weights.tar`.

    Returns:
      (tree, config) for `promptgen_jax.models.dcgan.DCGAN`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model.
    """
    archive = reading.read_torch(source)
    state = archive.get("netG_state_dict") if isinstance(archive, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{source}: has no netG_state_dict. Pass weights.tar of the package gan_face_generate 1.1.1.")
    tensors = reading.torch_arrays(source, reading.unwrapped(state))
    tree = reading.build_tree(source, tensors, recipe(), layers.unused(tensors))
    config = {
        "kind": "generator",
        "adapter": "dcgan",
        "module": "dcgan.DCGAN",
        "options": {},
        "name": "dcgan_digiface",
        "latent_dim": 100,
        "image_size": 64,
        "license": "MIT by its author; trained on DigiFace-1M, whose R-UDA terms allow non-commercial research only",
        "source": "package gan_face_generate 1.1.1, weights.tar",
        "source_sha256": weights.file_sha256(source),
        "converter": "python convert/dcgan_to_flax.py weights.tar ported_weights/dcgan_digiface",
    }
    reading.check_shapes(source, tree, config, (1, config["latent_dim"]))
    return tree, config


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    return reading.run(convert, argv, "Converts weights.tar of gan_face_generate to a weight folder.")


if __name__ == "__main__":
    sys.exit(main())
