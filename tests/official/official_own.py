"""Networks as PyTorch users have them: torchvision's ResNets, timm's ViT and a DCGAN, narrower."""

import official_transformers as official
import torch
from torch import nn

LABELS = ["cat", "dog", "fox", "owl"]


class ResNetBlock(nn.Module):
    """BasicBlock and Bottleneck of torchvision."""

    def __init__(self, inside, width, stride, bottleneck):
        super().__init__()
        sizes = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        outside, self.last = width * (4 if bottleneck else 1), len(sizes)
        for index, (size, step) in enumerate(sizes, start=1):
            before = inside if index == 1 else width
            after = outside if index == self.last else width
            setattr(self, f"conv{index}", nn.Conv2d(before, after, size, step, size // 2, bias=False))
            setattr(self, f"bn{index}", nn.BatchNorm2d(after))
        self.downsample = None
        if stride > 1 or inside != outside:
            shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))

    def forward(self, x):
        main = x
        for index in range(1, self.last + 1):
            main = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(main))
            main = torch.relu(main) if index < self.last else main
        return torch.relu(main + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """resnet18 to resnet101 of torchvision, narrower."""

    def __init__(self, blocks, bottleneck):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8)
        inside, outside = 8, 4 if bottleneck else 1
        for stage, count in enumerate(blocks):
            width = 8 * 2**stage
            made = [ResNetBlock(inside, width, 1 if stage == 0 else 2, bottleneck)]
            made += [ResNetBlock(outside * width, width, 1, bottleneck) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
            inside = outside * width
        self.fc = nn.Linear(inside, len(LABELS))

    def forward(self, pixel_values):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(pixel_values))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class TimmAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.qkv, self.proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class TimmBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = TimmAttention(width, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](nn.functional.gelu(self.mlp["fc1"](self.norm2(x))))


class TimmViT(nn.Module):
    """VisionTransformer of timm with a class token, as vit_tiny_patch16_224, smaller."""

    def __init__(self, width=24, heads=3, patch=8, size=32):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(TimmBlock(width, heads) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, len(LABELS))

    def forward(self, pixel_values):
        x = self.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class DCGAN(nn.Module):
    """The generator of a DCGAN whose latent ends with a class, one-hot."""

    def __init__(self, latent, widths, dropout=False):
        super().__init__()
        made = [nn.ConvTranspose2d(latent, widths[0], 4, 1, 0, bias=False)]
        for index, (before, after) in enumerate(zip(widths, [*widths[1:], 3], strict=True)):
            made += [nn.BatchNorm2d(before), nn.ReLU(), *([nn.Dropout(0.2)] if dropout and index == 0 else [])]
            made += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False)]
        self.main = nn.Sequential(*made, nn.Tanh())

    def forward(self, z):
        return self.main(z[:, :, None, None])


def saved(folder, kind, *options):
    """A network with drawn weights, and the file of its state dict."""
    model = official.seeded(lambda _: kind(*options), None)
    torch.save(model.state_dict(), folder / "own.pth")
    return model, folder / "own.pth"
