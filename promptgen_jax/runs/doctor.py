"""Whether promptgen_jax works on this machine: versions, devices, and the shipped networks on this very hardware.

Each shipped folder of weights has a `check.npz`, an input and what the network made of it on a CPU in full float32;
that the networks equal the originals there is what the tests show. `python -m promptgen_jax.runs.doctor FOLDER` records
it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from promptgen_jax.controls.clip import load_clip
from promptgen_jax.models.network import load_network
from promptgen_jax.parts import load_generator
from promptgen_jax.store import weights

CHECK = "check.npz"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "distrax", "tfp-nightly", "orbax-checkpoint", "transformers", "numpy")
TOLERANCE = 1e-3  # of the largest value, in full float32
TEXT = "a photo of a smiling woman"
ADVICE = (
    (("nvidia-smi",), ("/dev/nvidia0",), "An NVIDIA GPU", 'pip install -U "jax[cuda13]"'),
    ((), ("/dev/accel0", "/dev/vfio/0"), "A TPU", 'pip install -U "jax[tpu]"'),
)


def examine(say: Callable[[str], None] = print) -> dict:
    """Looks at versions, devices and the shipped networks, and tells each as soon as it is known.

    Args:
      say: takes a line.

    Returns:
      What was found, as JSON: python, versions, devices, accelerator, checks by weight folder, and `well`, which is
      False if a network is wrong or damaged, or none is there, or no device can be used.
    """
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    found: dict[str, Any] = {
        "python": f"{platform.python_version()}, {machine}",
        "versions": {name: _version(name) for name in PACKAGES},
    }
    say(f"python {found['python']}")
    say(", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    try:
        jax.devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        say(f"devices: none ({reason}). Install the support of that device, or unset JAX_PLATFORMS.")
        return found | {"devices": "none", "accelerator": reason, "checks": {}, "well": False}
    kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    found |= {
        "devices": f"{jax.device_count()} x {kinds} ({jax.default_backend()}), {jax.process_count()} process(es)",
        "accelerator": _accelerator().removeprefix("accelerator: "),
        "checks": {},
    }
    say(f"devices: {found['devices']}")
    say(f"accelerator: {found['accelerator']}")
    say("shipped networks in full float32 (on an accelerator also in its default precision):")
    say("largest difference from what was recorded, as a share of the largest value")
    for name, folder in sorted(_checked().items()):
        found["checks"][name] = check = _examine_weights(folder)
        say(f"  {name:20} {_told(check)}")
    if not found["checks"]:
        say("  none found. Install promptgen_jax from a clone or its wheel, or set PROMPTGEN_WEIGHTS.")
    return found | {"well": bool(found["checks"]) and all(check["well"] for check in found["checks"].values())}


def verdict(found: dict) -> str:
    """The last line, of what `examine` found."""
    return "All is well." if found["well"] else "Something is wrong; see above."


def largest_difference(folder: Path, precision: str) -> float:
    """How far the outputs of a weight folder are from its `check.npz`, relative to the largest value of each output.

    Raises:
      ValueError, FileNotFoundError: damaged weights, or a check of other weights.
    """
    with np.load(folder / CHECK, allow_pickle=False) as stored:
        recorded = dict(stored)
    if str(recorded.pop("sha256")) != weights.read_config(folder)["sha256"]:
        raise ValueError(
            f"{folder / CHECK}: recorded with other weights. Run python -m promptgen_jax.runs.doctor {folder}."
        )
    given = recorded.pop("input")
    with jax.default_matmul_precision(precision):
        outputs = _outputs(folder, given)
    return max(
        float(np.max(np.abs(outputs[name] - value)) / (np.max(np.abs(value)) + 1e-12))
        for name, value in recorded.items()
    )


def record(folder: str | Path, given: np.ndarray) -> None:
    """Writes `check.npz` of a weight folder.

    Args:
      folder: a generator, network or CLIP.
      given: (B, D) latents of a generator, else images (B, H, W, 3).
    """
    folder = weights.find_weights(folder)
    with jax.default_matmul_precision("highest"):
        outputs = _outputs(folder, given)
    weights.write_npz(folder / CHECK, input=given, sha256=np.array(weights.read_config(folder)["sha256"]), **outputs)


def _outputs(folder: Path, given: np.ndarray) -> dict[str, np.ndarray]:
    config = weights.read_config(folder)
    if config["kind"] == "generator":
        generator, key = load_generator(config["adapter"], weights=str(folder)), jax.random.key(0)
        made = {"images": jax.jit(lambda generator, z: generator(key, z))(generator, given)}
    elif config["kind"] == "clip":
        network, texts = load_clip(str(folder), [TEXT])
        made = {"texts": texts} | jax.jit(lambda network, images: network(images))(network, given)
    else:
        made = jax.jit(lambda network, images: network(images))(load_network(folder), given)
    return jax.tree.map(np.asarray, made)


def _examine_weights(folder: Path) -> dict:
    """The check of one weight folder: `well`, and the differences, or the `error` that it met."""
    try:
        check = {"difference": largest_difference(folder, "highest")}
        if jax.default_backend() != "cpu":
            check["default_precision"] = largest_difference(folder, "default")
    except (ValueError, FileNotFoundError) as error:
        return {"well": False, "error": str(error)}
    return {"well": check["difference"] < TOLERANCE, **check}


def _told(check: dict) -> str:
    if "error" in check:
        return check["error"]
    usual = f" ({check['default_precision']:.1e})" if "default_precision" in check else ""
    return f"{check['difference']:.1e}{usual}  {'ok' if check['well'] else 'WRONG'}"


def _checked() -> dict[str, Path]:
    return {name: folder for name, folder in weights.available_weights().items() if (folder / CHECK).is_file()}


def _accelerator() -> str:
    if jax.default_backend() != "cpu":
        return "accelerator: in use."
    for programs, devices, name, command in ADVICE:
        if any(map(shutil.which, programs)) or any(Path(device).exists() for device in devices):
            return f"accelerator: {name} is there, but jax does not use it. Install its support: {command}"
    commands = ", ".join(f"{name.split()[-1]}: {command}" for *_, name, command in ADVICE)
    return f"accelerator: none found; all runs on the CPU. If there is one, install its support. {commands}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with np.load(weights.find_weights(name) / CHECK, allow_pickle=False) as stored:
            record(name, stored["input"])
