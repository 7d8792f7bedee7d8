"""What all converters share: reading checkpoints without executing anything in them, and their command line.

What is read is renamed by a recipe, see `promptgen_jax.models.recipe`.
"""

from __future__ import annotations

import argparse
import functools
import pickle
import pickletools
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file

from convert import nvidia_pickle, safe_pickle, torchscript
from promptgen_jax.models import network
from promptgen_jax.models.recipe import Part as Part
from promptgen_jax.models.recipe import build_tree as build_tree
from promptgen_jax.models.recipe import keep as keep
from promptgen_jax.store import catalogue, documents, home, weights

LEGACY_TORCH = pickle.dumps(nvidia_pickle.LEGACY_MAGIC, protocol=2)

# NumPy pickles numbers under either name of the function, depending on its version
NUMPY_NUMBERS = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(number)) for number in (np.float64, np.float32, np.int64, np.int32)),
]

PLAIN = "Download it again; a file that needs code to load is refused."
COMPLETE = "Check that the file is complete and is the model this converter reads."
LEGACY_PICKLES = 5  # of an archive before zip files
STATES = ("state_dict", "model", "model_state_dict")  # where training scripts put a state dict
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
REPEATED, FREE = 2, 192 * 2**20  # tensors may share numbers: how often the file's size they may be, and how much more


def read_checkpoint(path: str | Path) -> dict:
    """What a checkpoint holds, told by its content and not by its name; nothing in it is executed.

    Returns:
      What was saved, for a `torch.save` archive, zip or older (.pt, .pth, .ckpt, .bin, .tar); NumPy arrays by name, for
      safetensors and TorchScript archives (.pt); dicts of `nvidia_pickle.Module`, for NVIDIA's .pkl.

    Raises:
      FileNotFoundError: no such file.
      ValueError: none of these, damaged, or needing code to load.
    """
    path = existing(path)
    with open(path, "rb") as file:
        start = file.read(len(LEGACY_TORCH))
    if torchscript.is_torchscript(path):
        return torchscript.read_torchscript(path)
    if start.startswith(b"PK") or start == LEGACY_TORCH:
        return read_torch(path)
    if start[8:9] == b"{":
        return read_safetensors(path)
    if start.startswith(b"\x80"):
        return nvidia_pickle.read(path)
    raise ValueError(
        f"{path}: neither a PyTorch archive, nor safetensors, nor a network pickle of NVIDIA. Download it again, or "
        "check that this is the official checkpoint."
    )


def read_torch(path: str | Path, harmless: Iterable = ()) -> dict:
    """A `torch.save` archive, read with `weights_only=True`: tensors and containers, never code.

    What training scripts save beside the tensors may be there: settings, an `argparse.Namespace`, and NumPy numbers.

    Args:
      path: the archive.
      harmless: (class, name) of further classes that may be named in it, with what stands in for them.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not such an archive, truncated, or holding anything but tensors and containers.
    """
    path = existing(path)
    try:
        import torch
    except ModuleNotFoundError:
        raise ValueError(f"{path}: reading it needs PyTorch. Run pip install torch, then convert again.") from None
    with documents.one_sentence(path, "not a complete PyTorch archive of plain tensors", advice=PLAIN):
        _check_cost(path)
        try:
            with torch.serialization.safe_globals([argparse.Namespace, *NUMPY_NUMBERS, *harmless]):
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            code = re.search(r"Unsupported (?:global: GLOBAL|class) ([\w.]+)", str(error))
            raise pickle.UnpicklingError(f"it asks for {code[1]}" if code else "of another kind") from None


def _check_cost(path: Path) -> None:
    """Raises pickle.UnpicklingError for a torch archive that would make more than it holds."""
    if zipfile.is_zipfile(path):
        torchscript.check_stored(path)
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith("data.pkl")]
            for name in names:
                with archive.open(name) as file:
                    _count_steps(file)
    else:
        with open(path, "rb") as file:
            for _ in range(LEGACY_PICKLES):
                _count_steps(file)


def _count_steps(file) -> None:
    for number, (code, argument, _) in enumerate(pickletools.genops(safe_pickle.Capped(file))):
        if number > safe_pickle.MAX_STEPS or (code.name == "BYTEARRAY8" and argument):
            raise pickle.UnpicklingError("it makes more than any network has")


def torch_arrays(where: str | Path, state: dict) -> dict[str, np.ndarray]:
    """The tensors of a state dict as float32 arrays.

    Raises:
      ValueError: entries that are no tensors, which are named, or tensors that hold more numbers than their file.
    """
    strangers = sorted(str(name) for name, value in state.items() if not hasattr(value, "detach"))
    if strangers:
        raise ValueError(
            f"{where}: {', '.join(strangers[:10])} are not tensors. Check that this is the official checkpoint."
        )
    with documents.one_sentence(where, "its tensors cannot be read", advice=PLAIN):
        size = sum(value.numel() * value.element_size() for value in state.values())
        if size > REPEATED * Path(where).stat().st_size + FREE:
            raise pickle.UnpicklingError("tensors of more numbers than there are")
        return {name: value.detach().float().numpy() for name, value in state.items()}


def unwrapped(state: dict) -> dict:
    """A state dict without the prefix that DataParallel or torch.compile has put before every name in it."""
    for wrapper in WRAPPERS:
        if state and all(str(name).startswith(wrapper) for name in state):
            return unwrapped({name.removeprefix(wrapper): value for name, value in state.items()})
    return state


def state_in(content: dict) -> dict:
    """The state dict of a training checkpoint, which holds it beside counters and optimizer, or what was given."""
    return unwrapped(next((content[name] for name in STATES if isinstance(content.get(name), dict)), content))


def consecutive(names: Iterable[str], pattern: str) -> int:
    """How many of 0, 1, 2, ... the first group of a pattern finds in names, without a gap.

    A file with names of two layers, the first and the billionth, has one.
    """
    found = {int(match[1]) for name in names if (match := re.match(pattern, name)) and len(match[1]) < 9}
    return next(index for index in range(len(found) + 1) if index not in found)


def one_door(convert: Callable) -> Callable:
    """Makes any failure of a converter one sentence that names the file."""

    @functools.wraps(convert)
    def convert_or_tell(source: str | Path, *arguments, **options):
        with documents.one_sentence(source, "cannot be converted", advice=COMPLETE):
            return convert(source, *arguments, **options)

    return convert_or_tell


def read_state(path: str | Path, official: str, entry: str = "") -> dict[str, np.ndarray]:
    """The float32 tensors of a state dict in a `torch.save` archive.

    Args:
      path: the archive.
      official: what to pass instead, for messages.
      entry: under which the archive holds the state dict, other entries being ignored; by default it is one, or a
        training checkpoint with one.

    Raises:
      FileNotFoundError, ValueError: as `read_torch`; or no such entry; or something in it is not a tensor.
    """
    content = read_torch(path)
    state = content
    if isinstance(content, dict):
        state = content.get(entry) if entry else state_in(content)
    if not isinstance(state, dict):
        found = ", ".join(map(str, list(content)[:10])) if isinstance(content, dict) else f"a {type(content).__name__}"
        what = f"no {entry} with a state dict in it" if entry else "no state dict"
        raise ValueError(f"{path}: holds {what} but {found or 'nothing'}. Pass {official}.")
    return torch_arrays(path, unwrapped(state))


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file, with their stored dtype.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged, or of a dtype that NumPy lacks.
    """
    with documents.one_sentence(path, "not a complete safetensors file", advice="Download it again."):
        return load_file(existing(path))


def existing(path: str | Path) -> Path:
    """The path of a file. Raises FileNotFoundError if there is none."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file. Pass the path of the official checkpoint.")
    return Path(path)


def check_shapes(where: str | Path, tree: dict, config: dict, example: tuple[int, ...]) -> None:
    """Raises ValueError unless the tree has the entries and shapes of the network that config.json names."""
    module = network.load_module(config)
    zeros = jax.ShapeDtypeStruct(example, np.float32)
    expected = network.expected_tree(module, zeros)
    weights.check_tree(str(where), tree, expected, converter="the converter on the right file")


def checked_network(where: str | Path, tree: dict, **facts) -> tuple[dict, dict]:
    """(tree, config) of a network that reads images, every shape checked.

    Args:
      where: the file the tree was made from.
      tree: parameters.
      facts: entries of config.json: name, module, attributes, license, source, converter.

    Raises:
      ValueError: the tree is not that of the module.
    """
    config = {"kind": "network", "options": {}, "source_sha256": weights.file_sha256(where), **facts}
    check_shapes(where, tree, config, (1, 64, 64, 3))
    return tree, config


def run(
    convert: Callable[..., tuple[dict, dict]],
    argv: list[str] | None,
    description: str,
    *,
    script: str = "",
    options: dict[str, dict] | None = None,
) -> int:
    """The command line of a converter: reads SOURCE, writes FOLDER, or says in one sentence why not.

    Nothing is written unless everything was read and checked. Other files in FOLDER are kept.

    Args:
      convert: makes tree and config of SOURCE.
      argv: SOURCE and FOLDER, or None for those of the process.
      description: for --help.
      script: the converter's file name, if it serves many checkpoints: the config then takes its name and licence
        from FOLDER, and SOURCE.md is written.
      options: arguments of `ArgumentParser.add_argument` by flag; `convert` gets their values by name.

    Returns:
      The exit status.
    """
    return write(convert, parse(argv, description, script=script, options=options), script=script)


def parse(
    argv: list[str] | None, description: str, *, script: str = "", options: dict[str, dict] | None = None
) -> argparse.Namespace:
    """The arguments of a converter: `source`, `folder`, and those of its options. Arguments as of `run`."""
    known = [name for name, each in catalogue.CHECKPOINTS.items() if each.converter == script]
    parser = argparse.ArgumentParser(
        description=description,
        epilog="\n".join(
            ["examples:", *(f"  {catalogue.CHECKPOINTS[name].command(name)}" for name in known[:2])] if known else []
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="the official file")
    parser.add_argument("folder", help="weight folder to write, e.g. ported_weights/<name>")
    for flag, about in (options or {}).items():
        parser.add_argument(flag, **about)
    return parser.parse_args(argv)


def write(convert: Callable[..., tuple[dict, dict]], arguments: argparse.Namespace, *, script: str = "") -> int:
    """Reads the source and writes the folder that the arguments name; the exit status. Arguments as of `run`."""
    told = {name: value for name, value in vars(arguments).items() if name not in ("source", "folder")}
    try:
        tree, config = convert(arguments.source, **told)
        source = ""
        if script:
            config |= _provenance(config, Path(arguments.source), Path(arguments.folder).resolve().name, script)
            source = source_md(config)
        weights.save_weights(arguments.folder, tree, config, source=source)
    except (ValueError, OSError) as error:
        return refused(error)
    print(f"{arguments.folder}: wrote {len(jax.tree.leaves(tree))} tensors from {arguments.source}")
    return 0


def refused(error: Exception) -> int:
    """Says why nothing was written; the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return 1


def _provenance(config: dict, source: Path, name: str, script: str) -> dict:
    """Name, licence and command of a folder. Raises ValueError if it is named for a checkpoint that this is not.

    `config["file"]` is the file that was read, if `source` is a folder, `config["flags"]` what the converter was told
    besides, and `config["source_sha256"]` a checksum, if it is not that of one file.
    """
    known = catalogue.CHECKPOINTS.get(name)
    if known and known.converter != script:
        raise ValueError(
            f"{source}: {name} is the folder of {known.file}, which {known.converter} reads. "
            "Choose another folder name for this file."
        )
    if known and known.image_size != config["image_size"]:
        raise ValueError(
            f"{source}: a network of {config['image_size']} pixels, but {name} has {known.image_size}. "
            f"{catalogue.how_to_get(name)} Or choose another folder name for this file."
        )
    labels = {attribute: tuple(names) for attribute, names in config.get("attributes", {}).items()}
    if known and labels != known.attributes:
        raise ValueError(
            f"{source}: labels {_said(labels)}, but {name} has {_said(known.attributes)}. Choose another folder name "
            "for this file."
        )
    file, flags = source / config.pop("file", ""), config.pop("flags", "")
    checksum = config.pop("source_sha256", "") or weights.file_sha256(file)
    official = known and file.resolve().parts[-len(Path(known.file).parts) :] == Path(known.file).parts
    command = known.command(name) if official else f"{home.converter(script)} {source.name} ported_weights/{name}"
    return {
        "name": name,
        "source": known.file if official else str(file.relative_to(source.parent)),
        "source_sha256": checksum,
        "url": known.url if official else "not a file of `promptgen_jax/store/catalogue.py`",
        "license": known.license if known else "that of the file it was converted from",
        "converter": f"{command} {flags}".rstrip(),
    }


def _said(labels: Mapping[str, tuple[str, ...]]) -> str:
    return "; ".join(f"{attribute} {', '.join(names)}" for attribute, names in labels.items())


def source_md(config: dict) -> str:
    """The text of SOURCE.md for a converted checkpoint."""
    return f"""# {config["name"]}

{config["about"]}

| | |
| --- | --- |
| Original | `{config["source"]}` |
| Published at | {config["url"]} |
| sha256 of the original | `{config["source_sha256"]}` |
| Converted by | `{config["converter"]}` |
| Network | `promptgen_jax.models.{config["module"]}` |
| Licence | {config["license"]} |

The weights keep the terms of the original; converting them changes nothing about that. Where no terms are stated, ask
those who published them before any use beyond research.
"""
