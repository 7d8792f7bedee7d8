"""docs/performance.md, and the measured part of docs/scaling.md, made of records."""

from __future__ import annotations

from pathlib import Path

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
        text = f"{where['processor']}, {where['threads']} threads, {versions}"
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
            f" The flow has {devices[0]['parameters']:,} numbers of 4 bytes.\n\n"
            + table(
                ("devices", "losses", "bytes sent a step", "temporary MiB", "arguments MiB", "GFLOP a device"), rows
            )
        )
    if costs := [each for each in records if each["kind"] == "cost"]:
        rows = [
            (
                each["title"],
                f"{each['gflop']:.1f}",
                f"{each['gbytes']:.2f}",
                seconds(each["predicted"]["this machine"]),
                seconds(each["measured"]),
                f"{each['measured'] / each['predicted']['this machine']:.2f}",
                *(seconds(value) for name, value in each["predicted"].items() if name != "this machine"),
            )
            for each in costs
        ]
        cards = [name for name in costs[0]["predicted"] if name != "this machine"]
        found += (
            "\nA step takes at least its operations over what the card multiplies a second, and its bytes over "
            "what its memory moves a second; the larger of both, with what is sent over the links added, is the "
            "prediction. On this machine it can be compared with the clock; on the cards named it is a prediction from "
            "their data sheets and nothing else, float32 without tensor cores.\n\n"
            + table(("program", "GFLOP", "GB", "predicted s", "measured s", "ratio", *cards), rows)
        )
    return found


def with_measured(page: str, text: str) -> str:
    """A page with other text between the two marks."""
    before, rest = page.split(START)
    _, after = rest.split(END)
    return f"{before}{START}\n{text}\n{END}{after}" if text else page


def seconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def table(head: tuple, rows: list[tuple]) -> str:
    """A table of Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)
