"""What a training is of, told in prompt.json and cards, and claimed by its work directory."""

from __future__ import annotations

from pathlib import Path

from flax.core import FrozenDict

from promptgen_jax import parts, types
from promptgen_jax.draws import settings
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.base import named_in
from promptgen_jax.store import weights
from promptgen_jax.training.config import TrainConfig

ABOUT = "training.json"
REPORTING = ("save_every", "log_every", "tensorboard", "shard_weights")  # options that leave the trained flow as it is


def recipe(ebm: LatentEBM, config: TrainConfig, flow: dict, objective) -> FrozenDict:
    """How a prompt is trained, for its prompt.json and card."""
    about = parts.describe(objective)
    told = ("objective_options", *about["options"])  # by `about`, completely
    training = {name: value for name, value in config.options().items() if name not in told}
    controls = [
        _asked(control)
        | {"checksums": {each.name: types.said(each, "checksum") for each in types.networks_of(control)}}
        for control in ebm.controls
    ]
    drawn = {"corners": ebm.cond_prior.corners} if ebm.cond_prior and ebm.dials else {}
    return types.plain({"controls": controls, "objective": about, "training": training | flow | drawn})


def _asked(control) -> dict:
    """What a control asks for, of which model, completely: for the card and for the claim of a work directory."""
    about = parts.describe(control)
    targets = {name: value for aim in types.aims_of(control) for name, value in aim.target}
    networks = (
        f"{each.name}, {types.said(each, 'license') or 'licence not stated'}" for each in types.networks_of(control)
    )
    return {
        "name": control.name,
        "kind": about["kind"],
        "options": about["options"] | ({"target": targets} if targets else {}),
        "weight": float(control.weight),
        "networks": "; ".join(networks),
    }


def claim_workdir(workdir: Path, ebm: LatentEBM, config: TrainConfig, flow: dict, optimizer) -> None:
    """Raises ValueError if a training of something else, which would be resumed, is in the workdir."""
    generator, file = ebm.generator, weights.open_folder("fit: workdir", workdir) / ABOUT
    about: dict = {
        "generator": {
            "name": generator.name,
            "checksum": generator.checksum,
            "fingerprint": parts.fingerprint(generator),
        },
        "controls": {
            control.name: _asked(control) | {"fingerprint": parts.fingerprint(control)} for control in ebm.controls
        },
        "conditions": parts.fingerprint(ebm.cond_prior) if ebm.cond_prior else None,
        "training": {name: value for name, value in config.about().items() if name not in REPORTING},
        "flow": flow | _own_code(flow),
    } | ({"optimizer": parts.fingerprint(optimizer)} if optimizer else {})
    about |= {"settings": settings()} if settings() else {}
    if file.is_file():
        found = weights.read_json(file, advice="Delete the folder.")
        if "conditions" not in found:
            weights.write_json(file, _since_fingerprints(found, about))
        else:
            about |= {"controls": _in_words_of(found.get("controls"), about["controls"])}
    weights.claim(
        file,
        about,
        refusal="fit: workdir {} holds another training (differs in {}). Choose another workdir, or delete this one.",
    )


def _own_code(flow: dict) -> dict:
    """A checksum of the code outside the library that options of a flow name."""
    return {
        f"{kind} code": parts.fingerprint(parts.find("flows", kind).build) for kind in named_in(flow) if "." in kind
    }


def _in_words_of(found, controls: dict) -> dict:
    """Controls as an earlier version told them, where they compute the same: they may have got options since."""
    earlier = {name: each for name, each in found.items() if isinstance(each, dict)} if isinstance(found, dict) else {}
    same = [name for name in controls if earlier.get(name, {}).get("fingerprint") == controls[name]["fingerprint"]]
    return controls | {name: earlier[name] for name in same}


def _since_fingerprints(found: dict, about: dict) -> dict:
    """What version 0.1.0 wrote, which had no fingerprints: those of `about` where the rest of an entry agrees."""
    generator = about["generator"]
    same = {"generator": found.get("generator") == [generator["name"], generator["checksum"]]}
    same["controls"] = {name: entry[1] for name, entry in found.get("controls", {}).items()} == {
        name: entry["weight"] for name, entry in about["controls"].items()
    }
    return {**about, **found, **{name: about[name] for name in same if same[name]}}
