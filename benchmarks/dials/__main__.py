"""What a dial costs and reaches: against closed forms, trainings for one setting alone, judges, and the clock.

    python -m benchmarks.dials exact [--steps 4000] [--seed 0 1 2] [--problem linear class shares]
    python -m benchmarks.dials smile [--steps 200] [--seed 0 1 2] [--corners 0.5 0.0] [--samples 4096]
    python -m benchmarks.dials two [--steps 200] [--seed 0 1 2] [--corners 0.5] [--samples 4096]
    python -m benchmarks.dials shares [--steps 400] [--seed 0 1 2] [--objective mixed] [--samples 4096]
    python -m benchmarks.dials sentences [--steps 300] [--seed 0 1 2] [--sentences 8] [--samples 4096]
    python -m benchmarks.dials edit [--steps 200] [--seed 0 1 2] [--samples 256] [--sheet edit.png]
    python -m benchmarks.dials play [--seed 0]

A line of JSON a training goes to `--results`, and a table to the screen. `exact` has three targets at eleven
strengths, whose mean, covariance and log Z are known: of the mean the worst error in standard deviations, of the
covariance the relative Frobenius norm beside that of exact samples of the same size. `smile` is the classifier control
of weight 3 on the shipped faces at 0.25, 0.5 and 1, with the gap E_q[log q - log p_z + E] + log Z, that from the
prior. At 1 it has the paired difference to a training of the same steps and seed without a dial. `two` has a dial each
for smile and turn, as `configs/face_two_dials.py`, measured where the one, the other and both are at full strength,
each beside a training for that corner alone, of the same steps and seed, on the same noise. Intervals are of 95 %;
that of a gap has the error of log Z in it, and the paired difference has none. `shares` asks for shares of female and
happy at once, by `configs/face_shares.py`: what the control's own networks and others see, the flow's samples as they
are and reweighted, and the effective share of these weights. `sentences` trains one flow over captions of the shipped
small CLIP, by `configs/face_sentences.py`, and compares it, at captions of choices of labels that it never saw, with a
training for each of them, of a fifth of the steps and the same seed, on the same noise. Beside the gaps are the shares
of what a caption states as `emotion` and `faceres` see it, which had no part in the captions, and the mean yaw by
`facemesh`, positive being left: of the generator, of the one flow, and of that of the caption alone. `edit` moves
faces along the smile's dial and back, with the distance of their embeddings by `faceres`, and to that of the next
face. `play` is the time in which the page draws 16 faces, by the clock; other seconds are of the processor, with
compilation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.dials import edit, exact, measuring, play, sentences, shares, smile, two
from benchmarks.machine import processor

RESULTS = Path("benchmarks/dials.jsonl")
BENCHES = {
    "exact": exact,
    "smile": smile,
    "two": two,
    "shares": shares,
    "sentences": sentences,
    "edit": edit,
    "play": play,
}


def shown(found):
    """A training as lines of a table."""
    about = ", ".join(f"{name} {value}" for name, value in found.items() if name != "rows")
    lines = [about]
    for row in found["rows"]:
        cells = (
            f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
        )
        lines.append("  " + ", ".join(cells))
    return "\n".join(lines)


def arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    steps = ", ".join(f"{bench.STEPS:,} of {name}" for name, bench in BENCHES.items() if bench.STEPS)
    add("bench", choices=BENCHES)
    add("--steps", type=int, default=0, help=f"of a training; {steps}")
    add("--seed", type=int, nargs="+", default=[0, 1, 2])
    add("--corners", type=float, nargs="+", default=[], help="0.5 and 0 of smile, 0.5 of two")
    add("--samples", type=int, default=0, help="of a measurement on faces; 4,096, and 256 of edit")
    add("--problem", nargs="+", default=[], choices=exact.PROBLEMS, help="of exact")
    add("--objective", default="", help=f"of shares; {shares.OBJECTIVE} if left out")
    add("--sentences", type=int, default=8, help="held out, of sentences")
    add("--sheet", type=Path, help="where edit writes its picture")
    add("--results", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv=None):
    """Trains and measures what is asked for."""
    options = arguments(argv)
    bench = BENCHES[options.bench]
    asked = measuring.Asked(
        steps=options.steps or bench.STEPS,
        samples=options.samples or getattr(bench, "SAMPLES", measuring.SAMPLES),
        corners=tuple(options.corners),
        sentences=options.sentences,
        problems=tuple(options.problem),
        objective=options.objective,
        sheet=options.sheet,
    )
    for seed in options.seed:
        for found in bench.run(seed, asked):
            found["processor"] = processor()
            with options.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            print(shown(found), flush=True)


if __name__ == "__main__":
    main()
