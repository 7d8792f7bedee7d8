"""Converts what the official PromptGen trains: the flow of a pytorch_model.bin, or the betas of a *_debias.bin.

    python convert/promptgen_to_flax.py pytorch_model.bin runs/baby/flow
    python convert/promptgen_to_flax.py pytorch_model.bin runs/inner/flow --level 1
    python convert/promptgen_to_flax.py ffhq_debias.bin ported_weights/beta_ffhq --beta

The file also holds the frozen generator and control models; those have converters of their own. Level 0 is the flow
that was trained last, level 1 the flow inside its generator (iterated control), and so on. Needs torch.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from convert import reading
from promptgen_jax.flows import base
from promptgen_jax.store import weights
from promptgen_jax.types import Prior

ROOT, INNER = "module.", "gan_wrapper.generator."
FLOWS = ("eps_to_z", "xi_to_y")  # z, and the class embedding of BigGAN
EXTRAS = {"fixed_eps": "fixed_eps", "fixed_xi": "fixed_xi", "mean_latent": "gan_wrapper.mean_latent"}
EMBEDDING = "gan_wrapper.generator.embeddings.weight"
IGNORED = ("gan_wrapper.", "energy_modules.", "energy_modules_paired.", "classifier.", "fixed_z")
BETA = "class_type2lambda."
ROTATION_TOLERANCE = 1e-4  # float32 storage costs about 1e-6; anything above is not a rotation

# Order of the FairFace outputs, as the energies of the official code slice them.
ATTRIBUTES = {
    "race": ["White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern"],
    "gender": ["Male", "Female"],
    "age": ["0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+"],
}


def read_state(source: str | Path) -> dict:
    """The state dict of an official run, tensors by name, as DataParallel names them or, on one GPU, without prefix.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or not a dict of such tensors.
    """
    state = reading.read_torch(source)
    if isinstance(state, dict) and any(str(name).startswith((*FLOWS, INNER, BETA)) for name in state):
        state = {f"{ROOT}{name}": value for name, value in state.items()}
    if not isinstance(state, dict) or not any(str(name).startswith(ROOT) for name in state):
        raise ValueError(
            f"{source}: no tensor begins with {ROOT!r}. Pass the pytorch_model.bin that an official run has written."
        )
    return state


def flow_recipe(prefix: str, index: int, num_layers: int) -> dict[str, reading.Part]:
    """Targets of one flow: Linear weights are transposed, (1, D) rows flattened, rotations stacked."""
    parts, layers = {}, [f"{prefix}module_list.{layer}." for layer in range(num_layers)]
    for layer, source in enumerate(layers):
        target = f"params/flows_{index}/layers_{layer}"
        for name in ("global_scale", "global_offset"):
            parts[f"{target}/{name}"] = reading.Part((source + name,), lambda row: np.squeeze(row, axis=0))
        for dense, linear in enumerate(("subnet.0", "subnet.2")):
            parts[f"{target}/conditioner/Dense_{dense}/kernel"] = reading.Part(
                (f"{source}{linear}.weight",), lambda weight: weight.transpose(1, 0)
            )
            parts[f"{target}/conditioner/Dense_{dense}/bias"] = reading.keep(f"{source}{linear}.bias")
    for target, name in {"buffers": "w_perm", "inverses": "w_perm_inv"}.items():
        sources = tuple(layer + name for layer in layers)
        parts[f"{target}/flows_{index}/rotations"] = reading.Part(sources, lambda *matrices: np.stack(matrices))
    return parts


@reading.one_door
def convert_flow(
    source: str | Path, *, level: int = 0, y_scale: float | None = None
) -> tuple[base.Flow, dict, dict, dict]:
    """Reads the flow of an official `pytorch_model.bin`; BigGAN's two become one flow with two blocks.

    Args:
      source: the official file.
      level: 0 for the flow trained last, 1 for the one inside its generator, and so on.
      y_scale: standard deviation of BigGAN's class embedding noise; default: computed from the embedding in the file.

    Returns:
      (flow, params, extras, about) for `promptgen_jax.flow.save_flow`; extras are fixed_eps and mean_latent.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model; every wrong tensor is named.
    """
    state = read_state(source)
    prefix = ROOT + level * INNER
    found = [name for name in FLOWS if any(key.startswith(f"{prefix}{name}.") for key in state)]
    if "eps_to_z" not in found:
        raise ValueError(f"{source}: no tensor begins with {prefix}eps_to_z. {_levels_sentence(state)}")
    recipe = {}
    for index, name in enumerate(found):
        recipe |= flow_recipe(f"{prefix}{name}.", index, _num_layers(state, f"{prefix}{name}."))
    for target, name in EXTRAS.items():
        if prefix + name in state:
            recipe[f"extras/{target}"] = reading.keep(prefix + name)
    if len(found) == 2 and y_scale is None:
        recipe["embedding"] = reading.keep(prefix + EMBEDDING)
    sources = {key for part in recipe.values() for key in part.sources}
    tensors = {key: state[key] for key in state if key in sources or not _ignored(key, prefix)}
    tensors = reading.torch_arrays(source, tensors)
    tree = reading.build_tree(source, tensors, recipe)
    if "embedding" in tree:
        y_scale = float(np.sqrt(np.mean(np.square(tree["embedding"], dtype=np.float64))))
    flow = _assemble(source, tree, [1.0, y_scale][: len(found)])
    about = {
        "source": f"official PromptGen checkpoint {Path(source).name}, level {level}",
        "source_sha256": weights.file_sha256(source),
        "converter": "python convert/promptgen_to_flax.py pytorch_model.bin FOLDER",
    }
    return flow, tree["params"], tree.get("extras", {}), about


@reading.one_door
def convert_beta(source: str | Path) -> tuple[dict, dict]:
    """Reads the fitted betas of an official `*_debias.bin`.

    Returns:
      (tree, config): `{"race": (7,), "gender": (2,), "age": (9,)}`, or those of them that were fitted, and config.json.

    Raises:
      FileNotFoundError, ValueError: missing, damaged, or another model; every wrong tensor is named.
    """
    state = read_state(source)
    prefix = ROOT + BETA
    found = [name for name in ATTRIBUTES if prefix + name in state]
    if not found:
        raise ValueError(
            f"{source}: no tensor begins with {prefix}. Pass a *_debias.bin, or leave out --beta for a flow."
        )
    recipe = {name: reading.keep(prefix + name) for name in found}
    tensors = reading.torch_arrays(source, {key: state[key] for key in state if not _ignored(key, ROOT)})
    tree = reading.build_tree(source, tensors, recipe)
    expected = {name: jax.ShapeDtypeStruct((len(ATTRIBUTES[name]),), np.float32) for name in found}
    weights.check_tree(str(source), tree, expected, converter="the converter on the right file")
    config = {
        "kind": "beta",
        "attributes": {name: ATTRIBUTES[name] for name in found},
        "source": f"official PromptGen betas {Path(source).name}",
        "source_sha256": weights.file_sha256(source),
        "converter": "python convert/promptgen_to_flax.py ffhq_debias.bin FOLDER --beta",
    }
    return tree, config


def _num_layers(state: dict, prefix: str) -> int:
    return max(1, reading.consecutive(state, re.escape(prefix) + r"module_list\.(\d+)\."))


def _levels_sentence(state: dict) -> str:
    pattern = re.compile(re.escape(ROOT) + f"((?:{re.escape(INNER)})*)eps_to_z\\.")
    levels = sorted({match[1].count(INNER) for match in map(pattern.match, state) if match})
    if levels:
        return f"Flows are at level {', '.join(map(str, levels))}; pass one of them as --level."
    if any(key.startswith(ROOT + BETA) for key in state):
        return "It holds betas; pass --beta."
    return "Pass the pytorch_model.bin of a PromptGen run."


def _ignored(key: str, prefix: str) -> bool:
    """Whether a tensor belongs to a frozen model, or to a flow further out."""
    return key.startswith(tuple(prefix + name for name in IGNORED)) or not key.startswith(prefix)


def _assemble(source, tree: dict, scales: list[float]) -> base.Flow:
    """Reads off the sizes, checks every shape and every rotation, and makes the flow around the tree."""
    names = sorted(tree["params"])
    first = [tree["params"][name]["layers_0"] for name in names]
    blocks = tuple(layer["global_scale"].size for layer in first)
    kernel = first[0]["conditioner"]["Dense_0"]["kernel"]
    prior = Prior(
        loc=np.zeros(sum(blocks), np.float32),
        scale=np.repeat(np.asarray(scales, np.float32), blocks),
        blocks=blocks,
    )
    module = base.build_module(
        prior,
        cond_dim=max(0, kernel.shape[0] - (blocks[0] - blocks[0] // 2)),
        architecture="allinone",
        clamp="tanh",
        num_layers=len(tree["params"][names[0]]),
        hidden_dim=kernel.shape[1],
    )
    got = {"params": tree["params"], "buffers": tree["buffers"]}
    weights.check_tree(str(source), got, base.variable_shapes(module), converter="the converter on the right file")
    for name in names:
        rotations, inverses = tree["buffers"][name]["rotations"], tree["inverses"][name]["rotations"]
        _check_rotations(source, name, rotations, inverses)
    return base.Flow(buffers=tree["buffers"], prior=prior, module=module)


def _check_rotations(source, name: str, rotations: np.ndarray, inverses: np.ndarray) -> None:
    transposes = rotations.swapaxes(1, 2)
    error = np.max(np.abs(rotations @ transposes - np.eye(rotations.shape[1])))
    if inverses.shape != transposes.shape or max(error, np.max(np.abs(inverses - transposes))) > ROTATION_TOLERANCE:
        raise ValueError(
            f"{source}: w_perm and w_perm_inv of {name} are not rotations and their transposes. "
            "Check that the file is complete."
        )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status. Nothing is written unless everything was read and checked."""
    parser = argparse.ArgumentParser(description="Converts a flow or betas trained by the official PromptGen.")
    parser.add_argument("source", help="the official file")
    parser.add_argument("folder", help="folder to write")
    parser.add_argument("--beta", action="store_true", help="the file holds betas (*_debias.bin)")
    parser.add_argument("--level", type=int, default=0, help="which flow of an iterated control, 0 = trained last")
    parser.add_argument(
        "--y_scale", type=float, help="BigGAN: class embedding noise, if the embedding is not in the file"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.beta:
            tree, config = convert_beta(arguments.source)
            weights.save_weights(arguments.folder, tree, config)
        else:
            flow, params, extras, about = convert_flow(
                arguments.source, level=arguments.level, y_scale=arguments.y_scale
            )
            base.save_flow(arguments.folder, flow, params, extras=extras, **about)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.folder}: wrote {'betas' if arguments.beta else 'a flow'} from {arguments.source}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
