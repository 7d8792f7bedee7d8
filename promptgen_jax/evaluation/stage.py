"""Everything the report says of one trained prompt: shares, pose, diversity, certificate, before and after.

Before is the generator that the prompt stands on, after the prompt, on the same noise. The noise is drawn from the
prior, so its own energies also estimate log Z; the weights of the flow's samples also reweight the shares.
"""

from __future__ import annotations

import jax
import numpy as np

from promptgen_jax.controls.pose import ANGLES
from promptgen_jax.devices import filter_none, map_batches
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.evaluation import bias
from promptgen_jax.evaluation.conditions import evaluate_conditions
from promptgen_jax.evaluation.exactness import certificate
from promptgen_jax.models.network import load_network
from promptgen_jax.prompt import Prompt
from promptgen_jax.types import Sample

DIVERSITY_SIZE = 64  # pixels a side at which pixel diversity is measured
NO_CERTIFICATE = (
    "There is no certificate: {} compares with an image that the flow itself makes, so there is no target density "
    "apart from the flow."
)


def evaluate(
    prompt: Prompt,
    ebm: LatentEBM,
    earlier: tuple,
    judges: dict,
    key,
    *,
    num_samples: int,
    trained: bool = True,
    batch_size: int = 64,
) -> dict:
    """Evaluates a prompt on fresh noise, a conditional one on conditions drawn from those trained on.

    Args:
      prompt: trained on `ebm`.
      ebm: target; its generator is the prompt's inner generator.
      earlier: controls of the prompts inside it, which are no independent judges any more.
      judges: attributes by name of a network, shown beside those of the controls; () for a network without classes.
      key: frozen draws.
      num_samples: of the prior and of the prompt.
      trained: False for a prompt that is the identity still: the headline then tells the reweighted shares.
      batch_size: images at a time.

    Returns:
      dict: `headline`, `shares`, `statistics`, `diversity`, `exactness`, `conditions`, `notes`, as in report.json;
      `exactness` is None where the target has no density of its own, `conditions` of a prompt without conditions.
    """
    controls = (*earlier, *ebm.controls)
    networks, attributes = _judges(controls, judges)
    eps = prompt.prior.sample(key, num_samples)
    cond = ebm.draw_cond(jax.random.fold_in(key, 1), num_samples)
    seen = _observe(prompt, ebm, networks, key, batch_size, eps, *filter_none(cond))
    log_weight = {when: found.get("log_weight") for when, found in seen.items()}
    weights = None if ebm.needs_reference else np.exp(log_weight["after"] - log_weight["after"].max())
    shares = [
        _share_row(network, attribute, seen, weights, ebm, controls)
        for name, network in networks.items()
        for attribute in attributes[name]
    ]
    result = {
        "shares": shares,
        "statistics": _pose(ebm, seen) + _energies(seen),
        "diversity": _diversity(seen) if ebm.generator.image_size > 1 else [],
        "exactness": None if ebm.needs_reference else certificate(log_weight["after"], log_weight["before"]),
        "conditions": None,
        "notes": [NO_CERTIFICATE.format(c.name) for c in ebm.controls if c.needs_reference],
    }
    if cond is not None:
        embedders = {c.network.name: c.network for c in ebm.controls if hasattr(c, "embed")}
        options = {"num_samples": num_samples, "batch_size": batch_size}
        result["conditions"] = evaluate_conditions(prompt, ebm, embedders | networks, key, **options)
    return {"headline": _headline(result, controls, "after" if trained else "weighted")} | result


def _judges(controls: tuple, judges: dict) -> tuple[dict, dict]:
    """Networks and their attributes by name: those of the controls, which always judge, and those asked for."""
    networks, attributes = {}, {}
    for control in controls:
        if hasattr(control, "attribute"):
            networks[control.network.name] = control.network
            attributes.setdefault(control.network.name, []).append(control.attribute)
    for name, wanted in judges.items():
        networks[name] = networks.get(name) or load_network(name)
        attributes.setdefault(name, []).extend(wanted)
    return networks, {name: list(dict.fromkeys(found)) for name, found in attributes.items()}


def _observe(prompt, ebm, networks, key, batch_size, eps, *cond) -> dict:
    """Small images, log weights if there are any, and all outputs of all judges, before and after, as NumPy."""

    @jax.jit
    def through_flow(prompt, eps, *cond):
        z, log_det = prompt.flow.forward_and_log_det(prompt.params, eps, *cond)
        return z, prompt.prior.log_prob(z) - prompt.prior.log_prob(eps) + log_det

    @jax.jit
    def observe(ebm, networks, index, z, log_ratio, cond=None):
        batch_key = jax.random.fold_in(key, index[0])
        images = ebm.images(batch_key, z)  # judges see the very ones whose energies weigh them
        shape = (*(min(side, DIVERSITY_SIZE) for side in images.shape[1:3]), 3)
        seen = {
            "images": jax.image.resize(images, (images.shape[0], *shape), "linear"),
            "judges": {name: network(images) for name, network in networks.items()},
        }
        if not ebm.needs_reference:
            energies = ebm.energies_of(batch_key, Sample(images=images, z=z, cond=cond))
            seen |= {"energies": energies, "log_weight": log_ratio - ebm.total(energies)}
        return seen

    def run(*latents):  # one program, compiled once, for both
        arrays = (np.arange(len(eps)), *latents, *cond)
        return map_batches(lambda *batch: observe(ebm, networks, *batch), batch_size, *arrays)

    moved = map_batches(lambda *batch: through_flow(prompt, *batch), batch_size, eps, *cond)
    seen = {"before": run(eps, np.zeros(len(eps), np.float32)), "after": run(*moved)}
    for found in seen.values():
        found |= {"log_weight": found["log_weight"].astype(np.float64)} if "log_weight" in found else {}
    return seen


def _share_row(network, attribute: str, seen: dict, weights, ebm: LatentEBM, controls: tuple) -> dict:
    control = _controlled(ebm.controls, network, attribute)
    log_probs = {when: log_softmax(seen[when]["judges"][network.name][attribute]) for when in ("before", "after")}
    log_probs |= {} if weights is None else {"weighted": log_probs["after"]}
    return share_row(
        network.name,
        "control" if _controlled(controls, network, attribute) else "independent judge",
        attribute,
        network.labels(attribute),
        log_probs,
        target=np.asarray(control.mu) if hasattr(control, "mu") else None,
        weights={"weighted": weights},
    )


def share_row(judge: str, role: str, attribute: str, labels, log_probs: dict, *, target=None, weights=None) -> dict:
    """An entry of `shares` in report.json.

    Args:
      judge: name of the network.
      role: "control" or "independent judge".
      attribute: what is judged.
      labels: K classes.
      log_probs: (N, K) by when: "before", "after" and perhaps "weighted".
      target: (K,) shares that were asked for, or None; adds the distance to it.
      weights: (N,) importance weights by when, where samples have any.
    """
    row = {
        "judge": judge,
        "role": role,
        "attribute": attribute,
        "labels": list(labels),
        "target": None if target is None else np.asarray(target).tolist(),
        "num_samples": len(log_probs["after"]),
    }
    weights = weights or {}
    for when, values in log_probs.items():
        row[when] = bias.shares(values, labels=labels, weights=weights.get(when))
    if target is not None:
        row["kl"] = {
            when: bias.distance_to_target(values, target, weights=weights.get(when))
            for when, values in log_probs.items()
        }
    return row


def log_softmax(logits) -> np.ndarray:
    """Log-probabilities (N, K) in float64."""
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _controlled(controls: tuple, network, attribute: str):
    """The control that aims at this attribute of this network, or None."""
    found = [c for c in controls if getattr(c, "attribute", None) == attribute and c.network.name == network.name]
    return found[-1] if found else None


def _pose(ebm: LatentEBM, seen: dict) -> list[dict]:
    rows = []
    for name, outputs in seen["before"]["judges"].items():
        if "pose" not in outputs:
            continue
        control = next((c for c in ebm.controls if hasattr(c, "active") and c.network.name == name), None)
        for index, angle in enumerate(ANGLES):
            row = {"name": angle, "unit": "degrees"}
            if control is not None and float(control.active[index]):
                row["target"] = float(control.target[index])
            rows.append(row | _means({when: found["judges"][name]["pose"][:, index] for when, found in seen.items()}))
    return rows


def _energies(seen: dict) -> list[dict]:
    """Of every control, unweighted, as Table 4 compares them."""
    return [
        {"name": f"energy of {name}", "unit": ""}
        | _means({when: found["energies"][name] for when, found in seen.items()})
        for name in seen["before"].get("energies", {})
    ]


def _means(values: dict) -> dict:
    """Mean, standard deviation and 95 % interval of the mean by when."""
    rows = {}
    for when, found in values.items():
        found = found.astype(np.float64)
        mean, error = float(found.mean()), bias.Z_95 * float(found.std()) / np.sqrt(len(found))
        rows[when] = {"mean": mean, "std": float(found.std()), "low": mean - error, "high": mean + error}
    return rows


def _diversity(seen: dict) -> list[dict]:
    rows = {}
    for when, found in seen.items():
        embeddings = next((out["embedding"] for out in found["judges"].values() if "embedding" in out), None)
        for name, value in bias.diversity(found["images"], embeddings).items():
            rows.setdefault(name, {"name": name})[when] = float(value)
    return list(rows.values())


def _headline(result: dict, controls: tuple, when: str) -> list[dict]:
    """What was asked, now and in earlier stages, by every judge that knows it: the control's and the others'.

    Where no control names a label or an angle, as a text does not, what moved most by each judge.
    """
    aims = {control.label for control in controls if hasattr(control, "label")}
    asked, most_moved = [], []
    for row in result["shares"]:
        lines = {
            label: {
                "label": f"share of {label} ({row['judge']}, {row['role']})",
                "before": 100 * row["before"][label]["hard"],
                "after": 100 * row[when][label]["hard"],
                "unit": "%",
            }
            for label in row["labels"]
        }
        asked += [line for label, line in lines.items() if label in aims or row["target"]]
        most_moved.append(max(lines.values(), key=_movement))
    angles = []
    for row in (row for row in result["statistics"] if row["unit"] == "degrees"):
        label = f"mean {row['name']}" + (f", target {row['target']:g}" if "target" in row else "")
        before, after = row["before"]["mean"], row["after"]["mean"]
        angles.append({"label": label, "before": before, "after": after, "unit": "degrees"})
        asked += angles[-1:] if "target" in row else []
    asked += _condition_lines(result["conditions"]) if result["conditions"] else []
    return asked or most_moved + sorted(angles, key=_movement)[-1:]


def _condition_lines(found: dict) -> list[dict]:
    lines = [
        {"label": f"mean error of {row['angle']}", "unit": "degrees"}
        | {when: row[when]["error"] for when in ("before", "after")}
        for row in found["pose"]
    ]
    return lines + [
        {
            "label": f"identity distance, one face in two poses ({row['network']}); two faces: {row['different']:.2f}",
            "after": row["same"],
            "unit": "",
        }
        for row in found["identity"]
    ]


def _movement(line: dict) -> float:
    return abs(line["after"] - line["before"])
