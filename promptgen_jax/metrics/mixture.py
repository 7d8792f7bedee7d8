"""Equal numbers from several prompts: a balanced data set without a moment constraint (Table 2 of the paper).

One prompt a cell, "female and old", say; the same number of samples of each makes shares near uniform. What counts is
the KL of the cells' shares to uniform, and the bare generator's beside it.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np

from promptgen_jax import draws
from promptgen_jax.devices import map_batches, seen_at_a_time
from promptgen_jax.metrics._figures import Headline, JudgedShares
from promptgen_jax.metrics._observed import log_softmax
from promptgen_jax.metrics.shares import judged
from promptgen_jax.models.network import load_network


def evaluate_mixtures(
    mixtures: dict, prompts: dict, generator, key, *, num_samples: int, batch_size: int | None = None
) -> list[dict]:
    """`measure_mixtures` as JSON: entries of `shares` in report.json."""
    rows = measure_mixtures(mixtures, prompts, generator, key, num_samples=num_samples, batch_size=batch_size)
    return [row.to_json() for row in rows]


def measure_mixtures(
    mixtures: dict, prompts: dict, generator, key, *, num_samples: int, batch_size: int | None = None
) -> list[JudgedShares]:
    """Shares of the cells among equal numbers of samples of each prompt, and of the bare generator.

    Args:
      mixtures: by name, {"stages": names of prompts, "judges": lists of binary questions (network, attribute, label)}.
        Questions are answered yes if the label has probability above one half; n of them have 2^n cells, which should
        be uniform. The first list is that of the controls, the others are of independent judges.
      prompts: by name.
      generator: the bare one.
      key: frozen draws.
      num_samples: of every mixture, and of the generator; rounded up to a multiple of the number of stages.
      batch_size: images per device at a time; None for what `devices.seen_at_a_time` says.

    Returns:
      One for each mixture and list of questions, with the distance to uniform.
    """
    names = {network for mixture in mixtures.values() for asked in mixture["judges"] for network, *_ in asked}
    networks = {name: load_network(name) for name in sorted(names)}
    asked = {tuple(question) for m in mixtures.values() for questions in m["judges"] for question in questions}
    needed: dict = {}
    for mixture in mixtures.values():
        for name in mixture["stages"]:
            needed[name] = max(needed.get(name, 0), -(-num_samples // len(mixture["stages"])))
    drawn = {
        name: _answers(prompts[name], networks, asked, jax.random.fold_in(key, number), count, batch_size)
        for number, (name, count) in enumerate(needed.items())
    }
    before = _answers(generator, networks, asked, jax.random.fold_in(key, len(drawn)), num_samples, batch_size)
    rows = []
    for name, mixture in mixtures.items():
        share = -(-num_samples // len(mixture["stages"]))
        for index, questions in enumerate(mixture["judges"]):
            questions = [tuple(question) for question in questions]
            cells = [dict(zip(questions, answer, strict=True)) for answer in _all_answers(len(questions))]
            after = np.concatenate([_cell_log_probs(drawn[stage], cells)[:share] for stage in mixture["stages"]])
            labels = [", ".join(_say(question, yes) for question, yes in cell.items()) for cell in cells]
            rows.append(
                judged(
                    " and ".join(dict.fromkeys(network for network, *_ in questions)),
                    "independent judge" if index else "control",
                    name,
                    labels,
                    {"before": (_cell_log_probs(before, cells), None), "after": (after, None)},
                    target=dict.fromkeys(labels, 1 / len(cells)),
                )
            )
    return rows


def headline(rows: list[JudgedShares]) -> list[Headline]:
    """The distance to uniform of every mixture and judge."""
    return [
        Headline(
            f"KL to uniform of {row.attribute} ({row.judge}, {row.role})",
            {draws: distance.hard.mean for draws, distance in row.kl.items()},
            unit="nats",
        )
        for row in rows
    ]


def _say(question: tuple, yes: bool) -> str:
    _, attribute, label = question
    return f"{attribute}: {label if yes else f'not {label}'}"


def _all_answers(count: int):
    return itertools.product((True, False), repeat=count)


def _answers(generator, networks: dict, asked: set, key, num_samples: int, batch_size: int | None) -> dict:
    """By question: log P(no) and log P(yes), (N, 2)."""
    eps = generator.prior.sample(key, num_samples)

    @jax.jit
    def look(generator, networks, keys, eps):
        images = draws.images_of(generator, keys, eps)
        return {name: network(images) for name, network in networks.items()}

    keys = draws.sample_keys(key, np.arange(num_samples))
    batch_size = seen_at_a_time(generator.image_size, batch_size)
    seen = map_batches(look, batch_size, keys, eps, shared=(generator, networks))
    answers = {}
    for network, attribute, label in asked:
        log_probs = log_softmax(seen[network][attribute])
        index = networks[network].label_index(attribute, label)
        no = np.logaddexp.reduce(np.delete(log_probs, index, axis=1), axis=1)
        answers[network, attribute, label] = np.stack([no, log_probs[:, index]], axis=1)
    return answers


def _cell_log_probs(answers: dict, cells: list[dict]) -> np.ndarray:
    """Log-probabilities (N, cells), the questions being answered independently of one another."""
    return np.stack([sum(answers[q][:, int(yes)] for q, yes in cell.items()) for cell in cells], axis=1)
