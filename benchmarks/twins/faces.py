"""The shipped generator and classifier in plain PyTorch: DCGAN (arXiv 1511.06434) and face-api's expression network."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from benchmarks.twins.tensors import below, convolution, transposed_convolution

INPUT_SIZE = 112
MEAN = (122.782, 117.001, 104.298)


class DCGAN:
    """Latents to images; the weights, batch norm folded in, are those of `promptgen_jax.models.dcgan.DCGAN`."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        """Of the weights by path."""
        self.layers = []
        for index in range(1, 1 + len(weights) // 2):
            kernel, bias = weights[f"layer{index}/kernel"], weights[f"layer{index}/bias"]
            first = kernel.permute(2, 3, 0, 1).contiguous()  # a single pixel: nothing to flip
            self.layers.append((first if index == 1 else transposed_convolution(kernel), bias))

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S) in [0, 1] of latents (B, D)."""
        x = z[:, :, None, None]
        for index, (kernel, bias) in enumerate(self.layers):
            options = {"stride": 2, "padding": 1} if index else {}
            x = functional.conv_transpose2d(functional.relu(x) if index else x, kernel, bias, **options)
        return (torch.tanh(x) + 1) / 2


class Expression:
    """Logits (B, 7) of expressions; weights are those of `promptgen_jax.models.faceapi.Expression`."""

    def __init__(self, weights: dict[str, torch.Tensor]):
        """Of the weights by path; a depthwise kernel becomes (C, 1, 3, 3)."""
        self.weights = {name: convolution(value) if value.ndim == 4 else value for name, value in weights.items()}
        self.mean = torch.tensor(MEAN).reshape(3, 1, 1) / 255

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Of images (B, 3, H, W) in [0, 1]."""
        x = legacy_bilinear(images, INPUT_SIZE) - self.mean
        for index in range(4):
            x = self.dense_block(below(self.weights, f"dense{index}/"), x, first=index == 0)
        return functional.linear(x.mean((2, 3)), self.weights["fc/kernel"].T, self.weights["fc/bias"])

    def dense_block(self, layer, x: torch.Tensor, *, first: bool) -> torch.Tensor:
        """Four convolutions, each of which reads the sum of all before it."""
        if first:
            total = functional.conv2d(same(x, 2), layer["conv0/kernel"], layer["conv0/bias"], stride=2)
        else:
            total = separable(below(layer, "conv0/"), x, stride=2)
        total = functional.relu(total)
        total = total + separable(below(layer, "conv1/"), total)
        total = total + separable(below(layer, "conv2/"), functional.relu(total))
        return functional.relu(total + separable(below(layer, "conv3/"), functional.relu(total)))


def separable(layer, x: torch.Tensor, *, stride: int = 1) -> torch.Tensor:
    """Depthwise 3x3 convolution, then a 1x1 convolution with bias."""
    x = functional.conv2d(same(x, stride), layer["depthwise/kernel"], stride=stride, groups=x.shape[1])
    return functional.conv2d(x, layer["pointwise/kernel"], layer["pointwise/bias"])


def same(x: torch.Tensor, stride: int) -> torch.Tensor:
    """Zeros for a 3x3 convolution by TensorFlow's rule: with stride 2 and an even size only behind."""
    before = 1 if stride == 1 or x.shape[-1] % 2 else 0
    return functional.pad(x, [before, 1, before, 1])


def legacy_bilinear(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear resize of (B, C, H, W) that reads output i at i · H / size."""
    for axis in (2, 3):
        whole = images.shape[axis]
        place = torch.tensor(np.arange(size, dtype=np.float32) * np.float32(whole / size))
        lower = place.floor().long()
        share = (place - lower).reshape((-1, 1) if axis == 2 else (-1,))
        above = images.index_select(axis, torch.clamp(lower + 1, max=whole - 1))
        images = images.index_select(axis, lower) * (1 - share) + above * share
    return images
