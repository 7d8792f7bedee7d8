"""Own PyTorch networks from their state dicts: ResNets of torchvision, a ViT of timm, a conditional DCGAN.

The networks are written here under the names that these libraries give their layers, which need not be installed.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import official_transformers as official
import pytest
from official_transformers import of_torch, photographs

import promptgen_jax as pg
from convert import dcgan_to_flax, layers, reading
from promptgen_jax.models import dcgan, preprocess, resnet, vit
from promptgen_jax.store import weights

torch = pytest.importorskip("torch")
nn = torch.nn
WAY = preprocess.Preprocess(rule="exact", size=(32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
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


def load(folder, file, module, options_of, recipe):
    """The ten lines of docs/extending.md."""
    tensors = reading.read_state(file, "a state dict")
    options = options_of(tensors)
    tree = reading.build_tree(file, tensors, recipe(options), layers.unused(tensors))
    config = {"kind": "network", "module": module, "options": options, "name": "own", "preprocess": WAY.to_json()}
    weights.save_weights(folder / "own", tree, config | {"attributes": {"label": LABELS}})
    return pg.load_network(folder / "own")


RESNETS = {18: ((2, 2, 2, 2), False), 34: ((3, 4, 6, 3), False), 50: ((3, 4, 6, 3), True), 101: ((3, 4, 23, 3), True)}


@pytest.mark.parametrize("layers", [18, *(pytest.param(number, marks=pytest.mark.full) for number in (34, 50, 101))])
def test_resnet_of_torchvision(tmp_path, layers):
    model, file = saved(tmp_path, ResNet, *RESNETS[layers])
    net = load(
        *(tmp_path, file, "resnet.Classifier", resnet.options_of_torchvision),
        lambda options: resnet.classifier_recipe(resnet.TORCHVISION, options),
    )
    assert net.module.blocks == RESNETS[layers][0]
    agrees(net, model)


def test_vit_of_timm(tmp_path):
    model, file = saved(tmp_path, TimmViT)
    net = load(
        *(tmp_path, file, "vit.ViT", lambda tensors: vit.options_of_timm(tensors, heads=3)),
        lambda options: vit.classifier_recipe(vit.TIMM, options),
    )
    agrees(net, model)
    control = pg.load_control("classifier", network=net, target="owl")
    assert control.spec.options["network"].startswith("own ")


def agrees(net, model):
    """Logits differ from PyTorch's by rounding only, as a share of the largest."""
    images = photographs(32, 32)
    pixels = (images - np.float32(WAY.mean)) / np.float32(WAY.std)
    wanted, _ = of_torch(model, pixels, lambda logits: logits)
    np.testing.assert_allclose(
        jax.jit(lambda net, images: net(images))(net, images)["label"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max()
    )


def test_says_which_state_dict_it_reads(tmp_path):
    with pytest.raises(ValueError, match="no state dict of torchvision's ResNet .conv1, layer1 to layer4 and fc"):
        resnet.options_of_torchvision({"module.conv1.weight": np.zeros((8, 3, 7, 7))})
    with pytest.raises(ValueError, match="no state dict of timm's VisionTransformer .*cls_token.* missing"):
        vit.options_of_timm({}, heads=3)
    _, file = saved(tmp_path, TimmViT)
    with pytest.raises(ValueError, match="heads is 5, which does not divide the width 24"):
        vit.options_of_timm(reading.read_state(file, "a state dict"), heads=5)


def test_conditional_dcgan(tmp_path):
    model, file = saved(tmp_path, DCGAN, 6 + 4, (16, 12, 8), True)
    images_agree(model, file, latent=6, classes=4, convolutions=(0, 4, 7, 10), features=(16, 12, 8))


@pytest.mark.full
def test_eyes_of_a_published_package():
    """omniart-eye-generator 0.1, of which only the file of weights is read: legacy, saved on CUDA, with dropout."""
    spec = importlib.util.find_spec("omniart_eye_generator")
    if spec is None:
        pytest.skip("needs the package omniart-eye-generator")
    file = Path(spec.submodule_search_locations[0]) / "generator_model_state.pth"
    model = DCGAN(108, (1024, 512, 256, 128, 64), True).eval()
    model.load_state_dict(reading.read_torch(file))
    sizes = {"convolutions": (0, 4, 7, 10, 13, 16), "features": (1024, 512, 256, 128, 64)}
    images_agree(model, file, latent=100, classes=8, **sizes)


def images_agree(model, file, *, latent, classes, convolutions, features):
    """With its class given, and as a latent of two blocks, of which the second chooses the class; then controlled."""
    tensors = reading.read_state(file, "a state dict")
    tree = reading.build_tree(file, tensors, dcgan_to_flax.recipe(convolutions), layers.unused(tensors))
    module = dcgan.DCGAN(features=features)
    tree = jax.tree.map(jnp.asarray, tree)
    given = jnp.tile(jax.nn.one_hot(1, classes), (3, 1))
    z = jax.random.normal(jax.random.key(0), (3, latent))
    both = jnp.concatenate([z, given], axis=1)
    with torch.no_grad():
        wanted = (model(torch.tensor(np.array(both))).permute(0, 2, 3, 1).numpy() + 1) / 2
    np.testing.assert_allclose(jax.jit(module.apply)({"params": tree}, both), wanted, atol=1e-5)

    def of_two_blocks(params, z):
        noise, choice = jnp.split(z, [latent], axis=1)
        return module.apply(params, jnp.concatenate([noise, jax.nn.softmax(8 * choice)], axis=1))

    prior = pg.Prior.standard(latent, classes)
    function = jax.tree_util.Partial(of_two_blocks, {"params": tree})
    generator = pg.FunctionGenerator(prior, function, image_size=wanted.shape[1], name="own")
    chosen = jnp.concatenate([z, 9.0 * given], axis=1)
    np.testing.assert_allclose(generator(jax.random.key(0), chosen), wanted, atol=1e-4)
    dark = pg.FunctionControl(lambda images: jnp.mean(images, axis=(1, 2, 3)), name="dark", weight=50.0)
    prompt, history = pg.fit(
        pg.LatentEBM(generator, (dark,)), flow={"hidden_dim": 8}, num_steps=3, batch_size=2, learning_rate=5e-3
    )
    assert np.isfinite(history[-1]["loss"])
    assert prompt.sample(jax.random.key(0), 2).shape == (2, *wanted.shape[1:])
