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

from benchmarks.twins.faces import DCGAN
from benchmarks.twins.flow import AllInOne
from benchmarks.twins.tensors import below

BATCH = 64


class Sampler:
    """Noise to faces, of arrays by path."""

    def __init__(self, arrays: dict[str, np.ndarray]):
        found = {name: torch.tensor(value) for name, value in arrays.items()}
        self.flow = AllInOne(below(found, "flow/"), found["rotations"])
        self.generator = DCGAN(below(found, "generator/"))

    @torch.inference_mode()
    def __call__(self, eps: torch.Tensor) -> torch.Tensor:
        """Images (B, 64, 64, 3) in [0, 1] of noise (B, D)."""
        z, _ = self.flow(eps)
        return self.generator(z).permute(0, 2, 3, 1)


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
