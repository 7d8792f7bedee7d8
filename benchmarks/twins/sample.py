"""Faces of a flow and DCGAN in plain PyTorch, into a folder: what a script that samples looks like without a library.

    python -m benchmarks.twins.sample weights.npz samples --num_samples 64

The file holds the arrays of the flow and of the generator by path, and the noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

BATCH = 64


class Sampler:
    """Noise to faces: six arrays a coupling, two a layer of the generator."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        from benchmarks.twins.tensors import transposed_convolution

        found = {name: torch.tensor(value) for name, value in arrays.items()}
        self.layers = []
        for index, rotation in enumerate(found["rotations"]):
            name = f"flow/flows_0/layers_{index}/"
            dense = [found[f"{name}conditioner/Dense_{k}/{part}"] for k in (0, 1) for part in ("kernel", "bias")]
            scale = 0.2 * functional.softplus(found[f"{name}global_scale"] / 2)
            self.layers.append((*dense, scale, found[f"{name}global_offset"], rotation))
        self.convolutions = []
        for index in range(1, 6):
            kernel, bias = found[f"generator/layer{index}/kernel"], found[f"generator/layer{index}/bias"]
            first = kernel.permute(2, 3, 0, 1).contiguous()
            self.convolutions.append((first if index == 1 else transposed_convolution(kernel), bias))

    @torch.inference_mode()
    def __call__(self, eps: torch.Tensor) -> torch.Tensor:
        """Images (B, 64, 64, 3) in [0, 1] of noise (B, D)."""
        x, split = eps, eps.shape[1] - eps.shape[1] // 2
        for kernel0, bias0, kernel1, bias1, scale, offset, rotation in self.layers:
            hidden = functional.leaky_relu(x[:, :split] @ kernel0 + bias0, 0.1)
            raw, shift = (0.1 * (hidden @ kernel1 + bias1)).chunk(2, dim=1)
            x = torch.cat([x[:, :split], x[:, split:] * torch.exp(2 * torch.tanh(raw)) + shift], dim=1)
            x = (x * scale + offset) @ rotation.T
        x = x[:, :, None, None]
        for index, (kernel, bias) in enumerate(self.convolutions):
            options = {"stride": 2, "padding": 1} if index else {}
            x = functional.conv_transpose2d(functional.relu(x) if index else x, kernel, bias, **options)
        return ((torch.tanh(x) + 1) / 2).permute(0, 2, 3, 1)


def batches(sampler: Sampler, eps: np.ndarray):
    """The faces of all noise (N, D), a batch at a time."""
    for start in range(0, len(eps), BATCH):
        yield sampler(torch.tensor(eps[start : start + BATCH]))


def write(sampler: Sampler, eps: np.ndarray, folder: Path) -> None:
    """A PNG of every noise (N, D)."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for made in batches(sampler, eps):
        for picture in (made.clamp(0, 1) * 255 + 0.5).to(torch.uint8).numpy():
            Image.fromarray(picture).save(folder / f"{number:06d}.png")
            number += 1


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num_samples", type=int, default=64)
    options = parser.parse_args()
    with np.load(options.weights) as found:
        arrays = dict(found)
    eps = arrays.pop("eps")[: options.num_samples]
    write(Sampler(arrays), eps, options.folder)


if __name__ == "__main__":
    main()
