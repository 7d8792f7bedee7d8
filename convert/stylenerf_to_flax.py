"""Converts StyleNeRF generators, `.pkl` files of facebookresearch/StyleNeRF.

    python convert/stylenerf_to_flax.py StyleNeRF_ffhq_1024.pkl ported_weights/stylenerf_ffhq1024

The network is built from the settings in the file, which differ from the published ones, and from the shapes of its
tensors; settings that would make another network are refused. Equalised learning rate scales are folded.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import family, nvidia_pickle, reading
from convert.stylegan2_to_flax import FILTER, MAPPING_RATE, dense_kernel, scaled
from promptgen_jax.models.stylenerf import UPSAMPLERS

IGNORED = r".*resample_filter|synthesis\.alpha"
# what a file leaves out, and None for what it has to say, by the section that it stands in
CAMERA = {"fov": 49.13, "bg_start": 1.0, "ray_align_corner": True, "depth_range": (0.5, 6.0)}
CAMERA |= {"range_u": (0.0, 0.0), "range_v": (0.25, 0.25), "range_radius": (2.732, 2.732)}
RENDERER = {"n_ray_samples": 14, "n_bg_samples": 4}
# settings that our network does not have, with the only value that is supported
FIXED = {
    "camera_kwargs": {
        "gaussian_camera": (False, True),
        "angular_camera": (False, True),
        "dists_normalized": (False, False),
        "depth_transform": (None, None),
    },
    "renderer_kwargs": {
        "hierarchical": (True, True),
        "sigma_type": ("relu", "relu"),
        "no_background": (False, False),
        "white_background": (False, False),
    },
    "foreground_kwargs": {
        "use_skip": (False, False),
        "use_viewdirs": (False, False),
        "add_rgb": (False, False),
        "predict_rgb": (False, True),
        "use_pos": (False, False),
        "downscale_p_by": (1, 1),
        "positional_encoding": ("normal", "normal"),
    },
    "upsampler_kwargs": {"no_residual_img": (False, False), "shared_rgb_style": (False, False)},
    "": {
        "kernel_size": (1, 1),
        "architecture": ("skip", "skip"),
        "use_noise": (False, False),
        "z_dim": (0, 0),
    },
}
OLD_SAMPLES = 20  # of a ray where the progressive state was never set


def matrix(factor: float = 1.0):
    """A dense layer (out, in) or a convolution (out, in, 1, 1) as (in, out), times a factor."""
    return lambda weight: scaled(factor)(weight.reshape(weight.shape[:2]))


def _equalised(name):
    def make(weight, bias):
        return {"kernel": matrix(1 / np.sqrt(weight.shape[1]))(weight), "bias": bias}

    return reading.Part((f"{name}.weight", f"{name}.bias"), make)


def _plain(name):
    sources = (f"{name}.weight", f"{name}.bias")
    return reading.Part(sources, lambda weight, bias: {"kernel": matrix()(weight), "bias": bias})


def _styled(target, name, *, demodulate=True):
    """A styled layer; where it is not demodulated its styles are divided by the root of the number of inputs."""

    def style(weight, bias):
        factor = 1.0 if demodulate else 1 / np.sqrt(len(bias))
        return {"kernel": scaled(factor / np.sqrt(weight.shape[1]))(weight), "bias": np.float32(bias * factor)}

    return {
        f"{target}/kernel": reading.Part((f"{name}.weight",), matrix()),
        f"{target}/bias": reading.keep(f"{name}.bias"),
        f"{target}/style": reading.Part((f"{name}.affine.weight", f"{name}.affine.bias"), style),
    }


def _gain(magnitude):
    if not magnitude > 0:
        raise ValueError("a mean square that is not positive")
    return np.float32(1 / np.sqrt(magnitude.reshape(())))


def recipe(options: dict) -> dict[str, reading.Part]:
    """Parameters and buffers of `models.stylenerf.StyleNeRF` by target. `options` are its fields."""
    parts = {"buffers/mean_latent": reading.keep("mapping.w_avg")}
    for index in range(options["mapping_layers"]):
        target, name = f"params/mapping/layer_{index}", f"mapping.fc{index}"
        parts[f"{target}/kernel"] = reading.Part((f"{name}.weight",), dense_kernel(MAPPING_RATE))
        parts[f"{target}/bias"] = reading.Part((f"{name}.bias",), lambda bias: np.float32(bias * MAPPING_RATE))
    for network, short in (("foreground", "fg_nerf"), ("background", "bg_nerf")):
        target, name = f"params/{network}", f"synthesis.{short}"
        layers = {f"layer_{index}": f"blocks.{index - 1}" for index in range(1, options[network][1])}
        layers |= {"layer_0": "fc_in", "density": "sigma_out", "features": "feat_out"}
        for ours, theirs in layers.items():
            if network == "background":
                parts[f"{target}/{ours}"] = _plain(f"{name}.{theirs}")
            else:
                parts |= _styled(f"{target}/{ours}", f"{name}.{theirs}", demodulate=ours.startswith("layer"))
        parts[f"{target}/colours"] = _equalised(f"{name}.to_rgb")
    for index in range(len(options["channels"])):
        target, name = f"params/block_{index}", f"synthesis.b{options['volume_size'] << index + 1}"
        for number in range(2):
            parts |= _styled(f"{target}/conv{number}", f"{name}.conv{number}")
            parts[f"{target}/gain{number}"] = reading.Part((f"{name}.conv{number}.w_avg",), _gain)
            parts[f"{target}/adapter/layer_{number}"] = _equalised(f"{name}.conv0.adapter.{number}")
        parts |= _styled(f"{target}/to_rgb", f"{name}.torgb", demodulate=False)
    return parts


def read_options(source: str | Path, settings: dict, tensors: dict) -> dict:
    """Fields of `models.stylenerf.StyleNeRF` from the settings of a file, and from the shapes of its tensors.

    Raises:
      ValueError: settings that are missing or not supported, or tensors of another network.
    """
    synthesis = settings.get("synthesis_kwargs") or {}

    def section(name):
        return synthesis if not name else synthesis.get(name) or synthesis  # old files have no sections

    wrong = [
        f"{name} {section(group).get(name, default)!r} instead of {want!r}"
        for group, facts in FIXED.items()
        for name, (default, want) in facts.items()
        if section(group).get(name, default) != want
    ]
    camera = CAMERA | {key: value for key, value in section("camera_kwargs").items() if key in CAMERA}
    renderer = RENDERER | {key: value for key, value in section("renderer_kwargs").items() if key in RENDERER}
    if list(camera["range_radius"]) != [1, 1]:
        wrong.append(f"range_radius {camera['range_radius']} instead of [1, 1]")
    if synthesis.get("upsample_mode") not in UPSAMPLERS:
        wrong.append(f"upsample_mode {synthesis.get('upsample_mode')!r} instead of one of {', '.join(UPSAMPLERS)}")
    filters = [value for name, value in tensors.items() if name.endswith("resample_filter")]
    if not all(each.shape == FILTER.shape and np.allclose(each, FILTER, atol=1e-6) for each in filters):
        wrong.append("another resampling filter than [1, 3, 3, 1]")
    progress = float(tensors.get("synthesis.alpha", np.float32(1)))
    if progress not in (1, -1):
        wrong.append(f"alpha {progress:g}, which is unfinished training, instead of 1")
    if settings.get("c_dim"):
        wrong.append(f"c_dim {settings['c_dim']} instead of 0")
    if wrong:
        raise ValueError(
            f"{source}: {', '.join(wrong)}. Only finished unconditional generators like FFHQ's are supported."
        )
    try:
        size, count = synthesis["resolution_vol"], 0
        while f"synthesis.b{size << count + 1}.conv1.bias" in tensors:
            count += 1
        depth = {
            kind: 1 + reading.consecutive(tensors, rf"synthesis\.{kind}_nerf\.blocks\.(\d+)\.") for kind in ("fg", "bg")
        }
        width = {kind: len(tensors[f"synthesis.{kind}_nerf.fc_in.bias"]) for kind in ("fg", "bg")}
        frequencies = tensors["synthesis.fg_nerf.fc_in.weight"].shape[1] // 6
        middle, spread = (
            [float(f(*camera[name])) for name in ("range_u", "range_v")]
            for f in (lambda low, high: (low + high) / 2, lambda low, high: (high - low) / 2)
        )
        return {
            "channels": [len(tensors[f"synthesis.b{size << index + 1}.conv1.bias"]) for index in range(count)],
            "style_dim": len(tensors["mapping.w_avg"]),
            "mapping_layers": reading.consecutive(tensors, r"mapping\.fc(\d+)\."),
            "volume_size": size,
            "foreground": [width["fg"], depth["fg"]],
            "background": [width["bg"], depth["bg"]],
            "background_dim": tensors["synthesis.bg_nerf.fc_in.weight"].shape[1] - 8 * frequencies,
            "feature_dim": len(tensors["synthesis.fg_nerf.feat_out.bias"]),
            "num_samples": renderer["n_ray_samples"] if progress == 1 else OLD_SAMPLES,
            "num_background_samples": renderer["n_bg_samples"],
            "num_frequencies": frequencies,
            "fov": float(camera["fov"]),
            "camera_mean": middle,
            "camera_std": spread,
            "depth_range": [float(each) for each in camera["depth_range"]],
            "background_start": float(camera["bg_start"]),
            "align_corner": bool(camera["ray_align_corner"]),
            "upsampler": synthesis["upsample_mode"],
            "conv_clamp": None if synthesis.get("conv_clamp") is None else float(synthesis["conv_clamp"]),
        }
    except (KeyError, IndexError) as error:
        raise ValueError(f"{source}: no {error}; this is no StyleNeRF generator. Pass ffhq_1024.pkl.") from None


@reading.one_door
def convert(source: str | Path) -> tuple[dict, dict]:
    """Reads an official StyleNeRF generator.

    Returns:
      (tree, config) for `promptgen_jax.models.stylenerf.StyleNeRF`.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another network.
    """
    content = reading.read_checkpoint(source)
    content = content if isinstance(content, dict) else {}
    family.check_family(source, content, "StyleNeRF")
    generator = content.get("G_ema")
    if not isinstance(generator, nvidia_pickle.Module):
        raise ValueError(f"{source}: holds no generator G_ema. Pass ffhq_1024.pkl of the authors.")
    tensors = {name: np.asarray(value, np.float32) for name, value in generator.tensors().items()}
    settings = nvidia_pickle.plain(generator.state.get("_init_kwargs"))
    options = read_options(source, settings if isinstance(settings, dict) else {}, tensors)
    ignored = [name for name in tensors if re.fullmatch(IGNORED, name)]
    tree = reading.build_tree(source, tensors, recipe(options), ignored)
    config = {
        "kind": "generator",
        "adapter": "stylenerf",
        "module": "stylenerf.StyleNeRF",
        "options": options,
        "latent_dim": tree["params"]["mapping"]["layer_0"]["kernel"].shape[0],
        "image_size": options["volume_size"] << len(options["channels"]),
    }
    reading.check_shapes(source, tree, config, (1, config["latent_dim"]))
    size, count = config["image_size"], sum(leaf.size for leaf in jax.tree.leaves(tree["params"]))
    config["about"] = (
        f"A StyleNeRF generator: latent N(0, I) on R^{config['latent_dim']}, a camera and a background code to {size} "
        f"x {size} RGB, by volume rendering at {options['volume_size']} pixels. {count:,} parameters, float32, and as "
        "buffer the running mean of w that the file holds."
    )
    return tree, config


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    description = "Converts a StyleNeRF generator to a weight folder."
    return reading.run(convert, argv, description, script="stylenerf_to_flax.py")


if __name__ == "__main__":
    sys.exit(main())
