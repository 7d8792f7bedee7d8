"""Weights of the library as tensors of torch, and gradients as NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.case import flat_tree


def tensors(tree: Any, *, trained: bool = False) -> dict[str, torch.Tensor]:
    """Leaves of a tree by path, a/b/c; those that are `trained` ask for gradients."""
    return {name: torch.tensor(np.asarray(leaf), requires_grad=trained) for name, leaf in flat_tree(tree).items()}


def below(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The entries under a prefix, by the rest of their paths."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def convolution(kernel: torch.Tensor) -> torch.Tensor:
    """(h, w, I, O) to (O, I, h, w)."""
    return kernel.permute(3, 2, 0, 1).contiguous()


def transposed_convolution(kernel: torch.Tensor) -> torch.Tensor:
    """(h, w, I, O), correlated with an input between whose pixels zeros stand, to (I, O, h, w) that is scattered."""
    return kernel.flip(0, 1).permute(2, 3, 0, 1).contiguous()


def channels_first(images: Any) -> torch.Tensor:
    """(B, H, W, C) to (B, C, H, W)."""
    return torch.tensor(np.asarray(images)).permute(0, 3, 1, 2).contiguous()


def channels_last(images: torch.Tensor) -> np.ndarray:
    """(B, C, H, W) to (B, H, W, C) of NumPy."""
    return images.detach().permute(0, 2, 3, 1).numpy()
