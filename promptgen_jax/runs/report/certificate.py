"""The certificate of a stage, in words for a reader who does not know the paper."""

from __future__ import annotations

import math
from collections.abc import Mapping

from promptgen_jax.runs.report.markup import Html, element, interval, number, percent

INTRO = (
    "Asking for something defines a target: the generator's own distribution, tilted towards what was asked. "
    "The probability of every sample of a flow is known exactly, so its distance to that target can be "
    "measured instead of guessed from pictures. A nat is a unit of information; 0.1 nats is hardly "
    "noticeable."
)


MOODS = {"good": "good", "agree": "good"} | dict.fromkeys(("fair", "second estimate too weak", "cannot tell"), "fair")


def certificate(exactness: Mapping | None) -> Html | None:
    """Effective sample size, log Z, KL and loss, each with what it means and a verdict.

    Args:
      exactness: the entry of report.json; `ess` counts samples, from 1 to `num_samples`.
    """
    blocks = [block(exactness or {}) for block in (_verdict, _ess, _log_z, _kl, _missed, _loss)]
    blocks = [block for block in blocks if block is not None]
    remarks = [element("li", note) for note in (exactness or {}).get("notes") or []]
    if not (blocks or remarks):
        return None
    return element(
        "div",
        element("p", INTRO),
        element("div", blocks, class_="checks"),
        element("ul", remarks) if remarks else None,
    )


def _verdict(exactness: Mapping) -> Html | None:
    verdict = exactness.get("verdict")
    if verdict is None:  # of a version before 0.2
        return None
    meaning = {
        "good": "Samples of the flow are hardly distinguishable from the target, from either side.",
        "fair": "Most samples are plausible and little of the target is missed; weigh them where exactness matters.",
        "bad": "The flow is clearly away from the target, or misses a part of it: see what follows.",
        "cannot tell": "The generator's own samples hardly meet this target, so a part of it may be missed unseen.",
    }
    return _check("Verdict", [verdict], meaning.get(verdict, ""), verdict)


def _missed(exactness: Mapping) -> Html | None:
    missed = exactness.get("missed_mass")
    if missed is None:
        return None
    ends = interval(exactness.get("forward_kl_low"), exactness.get("forward_kl_high"))
    shown = [f"{percent(missed)} missed; seen from the target ", number(exactness["forward_kl"]), " nats", ends]
    text = (
        "The same distance from the other side, over samples of the target: it is large where the flow rarely goes. "
        "Missed is the share of the target where the flow is more than ten times too thin."
    )
    return _check("What the flow misses", shown, text, None)


def _ess(exactness: Mapping) -> Html | None:
    ess, num = exactness.get("ess"), exactness.get("num_samples")
    if ess is None:
        return None
    share = ess / num if num else None
    value = [number(ess), f" of {number(num)} samples ({percent(share)})" if num else " samples"]
    text = (
        "Weights can turn samples of the flow into samples of the exact target; this is how many exact "
        "samples they are then worth. Near 100\u00a0% the flow is the target, above 10\u00a0% reweighted "
        "figures are dependable, below 1\u00a0% they rest on a handful of images."
    )
    return _check("Effective sample size", value, text, _graded(share, [(0.5, "good"), (0.1, "fair"), (0.01, "weak")]))


def _log_z(exactness: Mapping) -> Html | None:
    value, low, high = _estimate(exactness, "log_z")
    if value is None:
        return None
    if "verdict" in exactness:
        text = (
            "How much of the generator already fits the request: Z is the average of exp(−energy) over its untouched "
            "samples, so a more negative log Z means a rarer request. Estimated from samples of the flow and of the "
            f"generator together; of the latter {number(exactness['ess_prior'])} are effective."
        )
        return _check("log Z", [_fine(value), interval(low, high, _fine)], text, None)
    reference, ref_low, ref_high = _estimate(exactness, "log_z_reference")
    shown = [_labelled("from the flow", value, low, high)]
    text = (
        "How much of the generator already fits the request: Z is the average of exp(−energy) over its "
        "untouched samples, so a more negative log Z means a rarer request. "
    )
    if reference is None:
        text += "There is no second estimate here that would reveal a part of the target the flow never visits."
        return _check("log Z", shown, text, None)
    shown.append(_labelled("from the generator", reference, ref_low, ref_high))
    text += (
        "It is estimated twice, from samples of the flow and of the generator alone. The two should agree; a "
        "flow that misses a part of the target finds too little. "
    )
    if (value if high is None else high) < (reference if ref_low is None else ref_low):
        missed = 1 - math.exp(min(0.0, value - reference))
        text += f"Here about {percent(missed)} of the target seems to be missed."
        return _check("log Z", shown, text, "disagree")
    if (reference if ref_high is None else ref_high) < (value if low is None else low):
        text += "Here the flow finds more: the generator alone rarely meets the request, so trust the flow."
        return _check("log Z", shown, text, "second estimate too weak")
    return _check("log Z", shown, f"{text}Here they agree.", "agree")


def _kl(exactness: Mapping) -> Html | None:
    kl = exactness.get("kl")
    if kl is None:
        return None
    text = (
        "What is left between the samples and the target (the KL divergence): 0 is a perfect match, up to 1 "
        "most samples are plausible, above 3 the flow is clearly somewhere else. It hardly weighs parts of the "
        "target that the flow never visits, so read it together with what the flow misses."
    )
    shown = [number(kl), " nats", interval(exactness.get("kl_low"), exactness.get("kl_high"))]
    return _check("Distance to the target", shown, text, _graded(-kl, [(-0.1, "good"), (-1, "fair"), (-3, "weak")]))


def _loss(exactness: Mapping) -> Html | None:
    loss, optimum = exactness.get("loss"), exactness.get("loss_optimum")
    if loss is None:
        return None
    shown = [number(loss, 4)]
    text = "The loss on fresh samples after training."
    if optimum is not None:
        shown.append(element("span", f" best possible {number(optimum, 4)}", class_="was"))
        text += (
            f" No flow can get below the best possible value; the gap, {number(loss - optimum)} nats, is "
            "what longer training or a larger flow could still win."
        )
    return _check("Loss", shown, text, None)


def _estimate(exactness: Mapping, name: str) -> tuple[float | None, float | None, float | None]:
    """Value, low and high end of an entry."""
    value, low, high = (exactness.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    return value, low, high


def _labelled(name: str, value: float, low: float | None, high: float | None) -> Html:
    return element(
        "span",
        element("span", name, class_="was"),
        " ",
        _fine(value),
        interval(low, high, _fine),
        class_="estimate",
    )


def _fine(value: float) -> str:
    return number(value, 4)


def _graded(value: float | None, grades: list[tuple[float, str]]) -> str | None:
    """The first grade whose threshold `value` reaches, else "poor"."""
    if value is None or math.isnan(value):
        return None
    return next((grade for threshold, grade in grades if value >= threshold), "poor")


def _check(title: str, value: list, text: str, verdict: str | None) -> Html:
    mood = MOODS.get(verdict or "", "bad")
    badge = element("span", verdict, class_=f"verdict {mood}") if verdict else None
    return element(
        "div",
        element("h4", title, badge),
        element("p", *value, class_="check-value"),
        element("p", text),
        class_="check",
    )
