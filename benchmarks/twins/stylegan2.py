"""StyleGAN2 in plain PyTorch: Karras et al. 2019 (arXiv 1912.04958), every sample with a modulated kernel of its own.

The kernels of a batch stand side by side in one grouped convolution, as the paper's authors and their followers do it.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.twins.tensors import below, tensors

EPSILON = 1e-8
BINOMIAL = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4


class StyleGAN2:
    """Latents to images with the stored noise; weights are those of `promptgen_jax.models.stylegan2.StyleGAN2`."""

    def __init__(self, variables, module):
        self.module = module
        weights = tensors(variables["params"])
        self.noise = [tensors(variables["buffers"])[f"noise_{index}"] for index in range(len(module.noise_shapes))]
        self.weights = {
            name: value.T.contiguous() if value.ndim == 2 else _kernel(value) if value.ndim == 4 else value
            for name, value in weights.items()
        }
        self.filter = (BINOMIAL[:, None] * BINOMIAL)[None, None]

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S), nominally in [0, 1], of latents (B, D)."""
        w = self.mapping(z)
        x = self.weights["synthesis/constant"].permute(2, 0, 1).expand(len(z), -1, -1, -1)
        image, layer = None, 0
        for index in range(len(self.module.channels)):
            block = f"synthesis/block_{4 << index}/"
            if index:
                x = self.styled(f"{block}conv0/", x, w, self.noise[layer], upsample=True)
                layer += 1
            x = self.styled(f"{block}conv1/", x, w, self.noise[layer], upsample=False)
            layer += 1
            colours = self.to_rgb(f"{block}to_rgb/", x, w)
            image = colours if image is None else self.doubled(image) + colours
        return (image + 1) / 2

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        """Styles w (B, S) of latents."""
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + EPSILON)
        for index in range(self.module.mapping_layers):
            layer = below(self.weights, f"mapping/layer_{index}/")
            x = activated(functional.linear(x, layer["kernel"], layer["bias"]))
        return x

    def styled(self, name: str, x, w, noise, *, upsample: bool) -> torch.Tensor:
        """Modulated and demodulated 3x3 convolution, to twice the size or not, then noise, bias, leaky ReLU."""
        layer, (batch, channels, rows, columns) = below(self.weights, name), x.shape
        style = functional.linear(w, layer["style/kernel"], layer["style/bias"])
        kernel = layer["kernel"][None] * style[:, None, :, None, None]  # (B, O, I, 3, 3)
        kernel = kernel * torch.rsqrt(kernel.square().sum((2, 3, 4), keepdim=True) + EPSILON)
        x = x.reshape(1, batch * channels, rows, columns)
        if upsample:
            scattered = kernel.flip(3, 4).transpose(1, 2).reshape(batch * channels, -1, 3, 3)
            x = functional.conv_transpose2d(x, scattered, stride=2, groups=batch)
            x = x.reshape(-1, 1, *x.shape[2:])
            x = functional.conv2d(x, self.filter, padding=1)
        else:
            x = functional.conv2d(x, kernel.reshape(-1, channels, 3, 3), padding=1, groups=batch)
        x = x.reshape(batch, -1, *x.shape[2:])
        return activated(x + layer["noise_strength"] * noise + layer["bias"][:, None, None])

    def to_rgb(self, name: str, x, w) -> torch.Tensor:
        """Modulated 1x1 convolution to three colours."""
        layer, (batch, channels, rows, columns) = below(self.weights, name), x.shape
        style = functional.linear(w, layer["style/kernel"], layer["style/bias"])
        kernel = (layer["kernel"][None] * style[:, None, :, None, None]).reshape(batch * 3, channels, 1, 1)
        x = functional.conv2d(x.reshape(1, batch * channels, rows, columns), kernel, groups=batch)
        return x.reshape(batch, 3, rows, columns) + layer["bias"][:, None, None]

    def doubled(self, image: torch.Tensor) -> torch.Tensor:
        """Twice the size by the binomial filter."""
        batch, channels, rows, columns = image.shape
        made = functional.conv_transpose2d(image.reshape(-1, 1, rows, columns), self.filter, stride=2, padding=1)
        return made.reshape(batch, channels, 2 * rows, 2 * columns)


def activated(x: torch.Tensor) -> torch.Tensor:
    """Leaky ReLU, scaled to keep the variance."""
    return functional.leaky_relu(x, 0.2) * 2**0.5


def _kernel(value: torch.Tensor) -> torch.Tensor:
    return value.permute(3, 2, 0, 1).contiguous()
