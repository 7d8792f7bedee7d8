"""CLIP's image tower, its augmented views, and the energy, in plain PyTorch.

Radford et al. 2021 (arXiv 2103.00020); augmentations of Zhao et al. 2020 (arXiv 2006.10738) with a resize, one
picture after the other, every view at the picture's own size, then bicubic to the size of the tower.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from benchmarks.twins.tensors import tensors

Weights = dict[str, torch.Tensor]


class ImageTower:
    """A vision transformer with a class token; weights are those of `promptgen_jax.models.clip.VisionTower`."""

    def __init__(self, weights: Weights, module):
        self.module, width, size = module, module.width, module.patch_size
        patch = weights["patch/kernel"].reshape(size, size, 3, width)
        self.patch = patch.permute(3, 2, 0, 1).contiguous()
        self.weights = {name: value.T.contiguous() if "kernel" in name else value for name, value in weights.items()}
        self.mean = torch.tensor(module.mean).reshape(3, 1, 1)
        self.std = torch.tensor(module.std).reshape(3, 1, 1)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, E) of images (B, 3, S, S) in [0, 1], S the size of the tower."""
        weights, width = self.weights, self.module.width
        x = functional.conv2d((images - self.mean) / self.std, self.patch, stride=self.module.patch_size)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([weights["class_embedding"].expand(len(x), 1, width), x], dim=1)
        x = self.norm("ln_pre", x + weights["positional_embedding"])
        for index in range(self.module.layers):
            x = self.block(f"block{index}/", x)
        return functional.linear(self.norm("ln_post", x[:, 0]), weights["projection/kernel"])

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Layer normalisation."""
        return functional.layer_norm(x, x.shape[-1:], self.weights[f"{name}/scale"], self.weights[f"{name}/bias"], 1e-5)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A dense layer."""
        return functional.linear(x, self.weights[f"{name}/kernel"], self.weights[f"{name}/bias"])

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Attention, then a perceptron with the fast GELU, each on the normalised input and added to it."""
        batch, length, width = x.shape
        heads = self.module.heads
        qkv = self.linear(f"{name}attention/qkv", self.norm(f"{name}ln_1", x))
        q, k, v = qkv.reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.linear(f"{name}attention/out", mixed)
        hidden = self.linear(f"{name}mlp_in", self.norm(f"{name}ln_2", x))
        return x + self.linear(f"{name}mlp_out", hidden * torch.sigmoid(1.702 * hidden))


class Energy:
    """1/R Σ_r Σ_t w_t [1 - cos(image tower(view r), text t)] for given draws of the views."""

    def __init__(self, control, draws):
        """Of a `ClipControl` and `ops.augment.Draws`."""
        self.tower = ImageTower(tensors(control.network.weights), control.network.module)
        found = tensors({"text": control.text_features, "shares": control.text_weights})
        self.text, self.shares = found["text"], found["shares"]
        self.draws = tensors(draws._asdict())

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Energies (B,) of images (B, 3, S, S)."""
        size = self.tower.module.image_size
        draws = [{name: field[row] for name, field in self.draws.items()} for row in range(len(images))]
        made = list(map(views, images, draws))
        flat = functional.interpolate(torch.cat(made), size=(size, size), mode="bicubic", align_corners=False)
        features = functional.normalize(self.tower(flat), dim=-1)
        energies = ((1 - features @ self.text.T) * self.shares).sum(1)
        return energies.reshape(len(images), -1).mean(1)


def views(image: torch.Tensor, draws: Weights) -> torch.Tensor:
    """Augmented views (R, 3, S, S) of one image (3, S, S): colour, translation, resize, cutout."""
    x, side = image.expand(len(draws["side"]), *image.shape), image.shape[-1]
    brightness, saturation, contrast = (
        draws[name].reshape(-1, 1, 1, 1) for name in ("brightness", "saturation", "contrast")
    )
    x = x + (brightness - 0.5)
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (2 * saturation) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (contrast + 0.5) + mean
    x = translated(x, draws["shift_rows"], draws["shift_cols"])
    x = resized(x, int(draws["side"][0]))
    square = int(side / 2 + 0.5)
    rows, columns = (cut(side, square, draws[name]) for name in ("cutout_rows", "cutout_cols"))
    return x * (1 - rows[:, None, :, None] * columns[:, None, None, :])


def translated(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Every view moved up and left by its shifts, zeros outside."""
    side = x.shape[-1]
    padded = functional.pad(x, [1, 1, 1, 1]).permute(0, 2, 3, 1)
    place = torch.arange(side)
    row, column = (torch.clamp(place + shift[:, None] + 1, 0, side + 1) for shift in (rows, columns))
    view = torch.arange(len(x))
    return padded[view[:, None, None], row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


def resized(x: torch.Tensor, side: int) -> torch.Tensor:
    """Bilinear to `side` pixels, then padded or cropped around the middle to what it was."""
    whole = x.shape[-1]
    x = functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
    if side >= whole:
        first = (side - whole) // 2
        return x[:, :, first : first + whole, first : first + whole]
    before = (whole - side) // 2
    after = whole - side - before
    return functional.pad(x, [before, after, before, after])


def cut(side: int, square: int, middle: torch.Tensor) -> torch.Tensor:
    """(R, side): 1 where the black square of every view lies along an axis."""
    place, first = torch.arange(side), (middle - square // 2)[:, None]
    return ((place >= first) & (place < first + square)).float()
