"""Kept so: operations and memory of compiled programs, compilations of a run, and what its steps tell the host.

Counts, not times: they are the same on every machine. If a change is meant to move them,
`python -m pytest tests/test_counts.py --update-counts` keeps the new ones, to be committed with it.
"""

import json

import helpers
import jax
import jax.monitoring
import pytest
from jax._src.array import ArrayImpl

import promptgen_jax as pg
from benchmarks import counted

COMPILED = "/jax/core/compile/backend_compile_duration"
ADVICE = "If that is meant to be, run python -m pytest tests/test_counts.py --update-counts and commit counts.json."


@pytest.fixture(scope="module")
def table(request):
    """The kept counts, and those found now, which take their place in the end if the command line says so."""
    kept, found = counted.table(), {"about": counted.about(), "programs": {}, "run": {}}
    yield kept, found
    if request.config.getoption("--update-counts"):
        known = kept["programs"] | found["programs"]
        found["programs"] = {name: known[name] for name in counted.PROGRAMS}
        found["run"] = kept["run"] | found["run"]
        counted.TABLE.write_text(json.dumps(found, indent=1) + "\n")


LIKE_OTHERS = ("smile of the quick start, training step", "smile, gradient of the flow", "text, gradient of the flow")
PROGRAMS = [
    pytest.param(name, marks=pytest.mark.full if name in LIKE_OTHERS or ", tiny, " in name else ())
    for name in counted.PROGRAMS
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, table, request):
    kept, found = table
    found["programs"][name] = now = counted.count(name)
    if request.config.getoption("--update-counts"):
        return
    if kept["about"]["jax"] != counted.about()["jax"]:  # another JAX writes other equations
        now = {"gflop": now["gflop"]}
    elif kept["about"] != counted.about():  # and XLA plans its memory otherwise elsewhere
        now = {count: now[count] for count in ("gflop", "equations")}
    changed = counted.changed(name, now, kept["programs"][name])
    assert not changed, " ".join([*changed, ADVICE])


def test_a_dearer_program_is_found():
    kept = {"gflop": 1.0, "temporary_mib": 10.0}
    assert not counted.changed("x", {"gflop": 1.05, "temporary_mib": 9.5}, kept)
    assert counted.changed("x", {"gflop": 1.2, "temporary_mib": 10.0}, kept) == ["x: gflop is 1.2, kept is 1."]


@pytest.fixture
def compilations():
    """Names of the programs compiled since."""
    found = []

    def note(event, duration, **about):
        if event == COMPILED:
            found.append(about.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def run(steps, seen=lambda number: None):
    options = helpers.OPTIONS | {"num_steps": steps, "log_every": steps}
    callback = lambda number, metrics, prompt: seen(number)  # noqa: E731
    return pg.fit(helpers.make_ebm(), flow=helpers.FLOW, callback=callback, **options)


def test_compilations(compilations, table, request):
    """The step once, whatever the number of steps; and no more programs around it than are kept."""
    kept, found = table
    jax.clear_caches()
    run(3)
    first = list(compilations)
    found["run"]["compilations"] = len(first)
    run(6)
    assert sum("train_step" in name for name in first) == 1, first
    if not request.config.getoption("--update-counts"):
        assert len(first) <= kept["run"]["compilations"] * (1 + counted.TOLERANCE), f"{first} {ADVICE}"


@pytest.fixture
def transfers_free():
    """Whatever a test forbids, the next one may."""
    before = jax.config.jax_transfer_guard_host_to_device
    yield
    jax.config.update("jax_transfer_guard_host_to_device", before)


@pytest.mark.usefixtures("transfers_free")
def test_transfers(monkeypatch):
    """Between lines of metrics no step reads from the device or writes to it."""
    read, guarded = [], []

    def guard(number):
        """Refuses what is written, from the first line of metrics to the last."""
        guarded.append(number)
        jax.config.update("jax_transfer_guard_host_to_device", "disallow" if number == 1 else "allow")

    whole = ArrayImpl._value
    monkeypatch.setattr(ArrayImpl, "_value", property(lambda self: read.append(self.shape) or whole.fget(self)))
    counts = []
    for steps in (4, 12):
        run(steps, guard)
        counts.append(len(read))
        read.clear()
    assert counts[0] == counts[1] > 0
    assert guarded == [1, 4, 1, 12]
