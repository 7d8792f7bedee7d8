"""docs/performance.md, and the measured part of docs/scaling.md, made of records."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

from benchmarks import cost

DOCS = Path(__file__).resolve().parents[1] / "docs"
START, END = "<!-- made by `python -m benchmarks --page` -->\n", "<!-- until here -->\n"
INTRODUCTION = """\
# What it costs

Made by `python -m benchmarks --page` from `benchmarks/performance.json`, which this wrote:

```sh
python -m benchmarks --json benchmarks/performance.json
```

Each line is one computation done twice, by this library and by the other side, with the same weights. Both first have
to give the same numbers: the column *differs* is the norm of the largest difference as a share of the array's norm,
and a case above 1 % is refused. Each side has a process of its own, and they take turns. Seconds are medians of the
turns, *spread* the range of the turns over the median, the larger of the two sides. A ratio below 1 says that this
library is faster, or needs less. Memory is what a call adds to the process at most, and for a new process all that it
takes.
"""


def write(records: list[dict]) -> None:
    """Writes both pages.

    Raises:
      ValueError: no records, or some of small sizes, which say nothing.
    """
    if not records:
        raise ValueError(
            "page: there are no records. Run python -m benchmarks --json benchmarks/performance.json first."
        )
    if small := [each["name"] for each in records if each["quick"]]:
        raise ValueError(f"page: {', '.join(small)} were measured with --quick. Measure them without it.")
    (DOCS / "performance.md").write_text(performance(records))
    page = DOCS / "scaling.md"
    page.write_text(with_measured(page.read_text(), scaling(records)))


def performance(records: list[dict]) -> str:
    """The whole page."""
    sections = [INTRODUCTION, hardware(records)]
    peak = next((each for each in records if each["kind"] == "peak"), None)
    by_label: dict[str, list[dict]] = {}
    for record in records:
        if record["kind"] == "case":
            by_label.setdefault(record["label"], []).append(record)
    for label, group in by_label.items():
        sections.append(f"## Against {TITLES.get(label, label)}\n\n" + sides(group, label))
    compiled = [each for each in records if each["kind"] == "case" and "gflop" in each["ours"]]
    if compiled:
        sections.append(counted(compiled, peak))
    if views := [each for each in records if each["kind"] == "views"]:
        sections.append(gradients(views))
    if trainings := [each for each in records if each["kind"] == "recipe"]:
        sections.append(recipes(trainings))
    if accelerated := [each for each in records if each["kind"] == "accelerator"]:
        sections.append(on_accelerators(accelerated))
    return "\n".join(sections)


TITLES = {
    "torch": "plain PyTorch",
    "direct": "augmenting one operation after another",
    "XLA": "XLA's own depthwise convolutions and pools",
}


def hardware(records: list[dict]) -> str:
    """A line for each machine that something was measured on."""
    found: dict[str, list[str]] = {}
    for record in records:
        where = dict(record["where"])
        versions = ", ".join(f"{name} {value}" for name, value in where.items() if name not in ("processor", "threads"))
        text = f"{where['processor']}, threads: {where['threads']}, {versions}"
        found.setdefault(text, []).append(record["date"])
    return "\n".join(f"Measured on {text}; {min(dates)} to {max(dates)}.\n" for text, dates in found.items())


def sides(group: list[dict], label: str) -> str:
    """Times and memory of both sides."""
    rows = [
        (
            each["title"],
            seconds(each["ours"]["median"]),
            seconds(each["other"]["median"]),
            f"{each['ratio']:.2f}",
            f"{max(each['ours']['spread'], each['other']['spread']):.0%}",
            f"{each['ours']['peak_mib']:,.0f}",
            f"{each['other']['peak_mib']:,.0f}",
            "" if each["memory_ratio"] is None else f"{each['memory_ratio']:.2f}",
            f"{max(each['differences'].values()):.0e}",
        )
        for each in group
    ]
    return table(
        ("case", "ours s", f"{label} s", "ratio", "spread", "ours MiB", f"{label} MiB", "ratio", "differs"), rows
    )


def counted(group: list[dict], peak: dict | None) -> str:
    """Operations, the share of the machine's best, and compilation."""
    best = f", which reach {peak['gflops']:,.0f} GFLOP/s here" if peak else ""
    text = (
        "## What is in it\n\nGFLOP are those of matrix products and convolutions in the traced program, every round of "
        "its loops; XLA's are those of `cost_analysis`, which counts a loop once and other operations too. *Share* is "
        f"GFLOP a second over those of a large product of float32 matrices{best}. Temporary memory is what XLA plans "
        "beyond arguments and results. Equations are those of the traced program, with which the time to compile "
        "grows.\n\n"
    )
    rows = [
        (
            each["title"],
            f"{each['ours']['gflop']:,.2f}",
            f"{each['ours']['xla_gflop']:,.2f}",
            f"{each['ours']['gflop'] / each['ours']['median'] / peak['gflops']:.0%}" if peak else "",
            f"{each['ours']['temporary_mib']:,.0f}",
            f"{each['ours']['compile_seconds']:.1f}",
            f"{each['ours']['equations']:,}",
        )
        for each in group
    ]
    return text + table(("case", "GFLOP", "XLA's", "share", "temporary MiB", "compilation s", "equations"), rows)


def gradients(views: list[dict]) -> str:
    """Variance of the gradient for the arithmetic of CLIP."""
    first = views[0]
    text = (
        "## Views spent wisely\n\n"
        f"The gradient of the flow for {first['about']}. Variance is the mean squared distance from the mean over "
        f"{first['draws']} draws, as a share of that mean's squared norm; times the GFLOP of a step it says how much "
        "arithmetic a given precision costs, which is what matters.\n\n"
    )
    rows = [
        (
            each["draw"],
            each["images"],
            each["views"],
            f"{each['gflop']:.2f}",
            f"{each['variance']:.3g}",
            f"{each['variance'] * each['gflop']:.3g}",
        )
        for each in views
    ]
    return text + table(("draw", "images", "views", "GFLOP", "variance", "variance x GFLOP"), rows)


def recipes(trainings: list[dict]) -> str:
    """What trainings by each recipe end with, beside the longest one by the paper's of the same seed."""
    ways: dict[tuple, list[dict]] = {}
    for each in trainings:
        names = ("recipe", "batch_size", "views", "num_steps", "learning_rate")
        ways.setdefault(tuple(each[name] for name in names), []).append(each)
    paper = max((way for way in ways if way[0] == "paper"), key=lambda way: way[3])
    ends = {each["seed"]: each["looks"][-1] for each in ways[paper]}
    first = trainings[0]
    text = (
        f"## Time to a given energy\n\nThe shipped faces asked for “{first['text']}” with weight {first['weight']:g}, "
        "through the shipped small CLIP with all of the paper's augmentations, by `recipe` of the CLIP control. Every "
        f"flow is judged alike, by the paper's energy of {first['samples']} fresh samples in 50 views. KL is from the "
        "flow to the generator, the loss weight x energy + KL, both in nats. Figures are means over seeds at the end "
        "of the training; seconds are of the processor, with compilation. The last three columns say, seed by seed, "
        f"the share of the time of the paper's {paper[3]} steps that it took, and by how much energy and loss are "
        "above those at their end: a negative difference says that the recipe reached them.\n\n"
    )
    rows = []
    for (recipe, *way, rate), group in ways.items():
        last = [each["looks"][-1] for each in group]
        pairs = [(each["looks"][-1], ends[each["seed"]]) for each in group]
        rows.append(
            (
                f"`{recipe}`",
                *way,
                f"{rate:g}",
                f"{mean(look['seconds'] for look in last):.0f}",
                f"{mean(look['energy'] for look in last):.4f}",
                f"{mean(look['divergence'] for look in last):.2f}",
                f"{mean(look['loss'] for look in last):.2f}",
                ", ".join(f"{one['seconds'] / other['seconds']:.2f}" for one, other in pairs),
                ", ".join(f"{one['energy'] - other['energy']:+.4f}" for one, other in pairs),
                ", ".join(f"{one['loss'] - other['loss']:+.2f}" for one, other in pairs),
            )
        )
    head = (
        "recipe",
        "images",
        "views",
        "steps",
        "rate",
        "s",
        "energy",
        "KL",
        "loss",
        "time",
        "energy above",
        "loss above",
    )
    return text + table(head, rows)


def on_accelerators(group: list[dict]) -> str:
    """Each program on each device, by precision and number of images."""
    text = (
        "## On an accelerator\n\nBy `python -m benchmarks --accelerator`: our side alone. Share is of the operations a "
        "second that a large matrix product reaches there in the same precision, see `benchmarks/accelerator.py`.\n\n"
    )
    rows = [
        (
            each["device"],
            each["program"],
            each["precision"],
            each["batch"],
            seconds(each["seconds"]),
            f"{each['spread']:.0%}",
            f"{each['gflop']:,.1f}",
            f"{each['share']:.0%}",
            f"{each['temporary_mib']:,.0f}",
            f"{each['compile_seconds']:.1f}",
        )
        for each in group
    ]
    head = (
        "device",
        "program",
        "precision",
        "images",
        "s",
        "spread",
        "GFLOP",
        "share",
        "temporary MiB",
        "compilation s",
    )
    return text + table(head, rows)


def scaling(records: list[dict]) -> str:
    """What was measured on virtual devices, and how well the model of cost predicts."""
    found = ""
    if devices := [each for each in records if each["kind"] == "devices"]:
        rows = [
            (
                each["devices"],
                ", ".join(f"{loss:.6f}" for loss in each["losses"]),
                ", ".join(f"{kind} {entry['bytes']:,}" for kind, entry in sorted(each["messages"].items())) or "none",
                f"{each['temporary_mib']:.1f}",
                f"{each['argument_mib']:.1f}",
                f"{each['gflop']:.2f}",
            )
            for each in devices
        ]
        found += (
            f"A training step of {devices[0]['about']}, on virtual devices of one processor, from the compiled program."
            f" The flow, the paper's, has {devices[0]['parameters']:,} numbers of 4 bytes, whose gradient is one"
            " message; a coupling flow sends its gradient pair of layers by pair of layers.\n\n"
            + table(
                ("devices", "losses", "bytes sent a step", "temporary MiB", "arguments MiB", "GFLOP a device"), rows
            )
        )
    peak = next((each for each in records if each["kind"] == "peak"), None)
    programs = [each for each in records if each["kind"] == "case" and "gflop" in each["ours"]]
    found += predicted(programs, peak) if programs and peak else ""
    return f"## Measured\n\n{found}" if found else ""


def predicted(programs: list[dict], peak: dict) -> str:
    """The model of cost beside the clock on this machine, and its predictions for others."""
    machine = cost.Card(peak["gflops"], peak["gbytes"], 1.0)
    text = (
        "\n### On another card\n\n"
        "How long does a step take elsewhere? At least as long as its operations need at the rate of a large matrix "
        "product, and at least as long as its bytes need at the rate of the memory: the longer of both is the "
        f"prediction, see `benchmarks/cost.py`. Here the rates were measured, {peak['gflops']:,.0f} GFLOP/s and "
        f"{peak['gbytes']:,.0f} GB/s, so that the clock can be compared with it. Those of the cards are from data "
        "sheets, float32 without tensor cores, and nothing was run on them. Bytes are those of `cost_analysis`, which "
        "counts the body of a loop once.\n\n"
    )
    rows = []
    for each in programs:
        work = {"gflop": each["ours"]["gflop"], "gbytes": each["ours"]["xla_gbytes"]}
        here = cost.predict(machine, **work)
        cards = [seconds(cost.predict(card, **work)) for card in cost.CARDS.values()]
        measured = each["ours"]["median"]
        rows.append(
            (
                each["title"],
                seconds(work["gflop"]),
                seconds(work["gbytes"]),
                seconds(here),
                seconds(measured),
                f"{measured / here:.2f}",
                *cards,
            )
        )
    return text + table(("program", "GFLOP", "GB", "predicted s", "measured s", "ratio", *cost.CARDS), rows)


def with_measured(page: str, text: str) -> str:
    """A page with other text between the two marks."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}{text}\n{END}{after}" if text else page


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def table(head: tuple, rows: list[tuple]) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
