"""Sampling the shipped faces from a prompt: in memory, to disk, and from the command line in a new process."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.case import Case, Side, flat_tree, trained

ROUNDING = 4e-3  # of the norm: one step of 255 here and there
SEED = 7
KEPT: list[tempfile.TemporaryDirectory] = []


def cases(quick: bool) -> list[Case]:
    """One a way."""
    many, few = (8, 4) if quick else (1000, 64)
    titles = {
        "memory": (f"{many:,} faces in memory", many),
        "disk": (f"{many:,} faces to disk", many),
        "cold": (f"{few} faces from the command line, a new process", few),
    }
    return [
        Case(
            name=f"sampling/{name}",
            title=title,
            ours=functools.partial(OURS[name], count),
            other=functools.partial(TWINS[name], count),
            tolerance=ROUNDING,
        )
        for name, (title, count) in titles.items()
    ]


def prompt():
    """A prompt of the shipped faces in a flow as of the README, moved as training moves it."""
    import jax

    import promptgen_jax as pg

    generator = pg.load_generator("dcgan_digiface")
    options = {"architecture": "allinone", "num_layers": 8, "hidden_dim": 128}
    flow, params = pg.init_flow(jax.random.key(0), generator.prior, **options)
    return pg.Prompt(generator, flow, trained(params), name="benchmark")


def our_memory(count: int) -> Side:
    """`prompt.sample`."""
    import jax
    import numpy as np

    made, key, start = prompt(), jax.random.key(SEED), time.perf_counter()
    made.sample(key, min(count, 64))
    facts = {"compile_seconds": time.perf_counter() - start}
    return Side(lambda: np.asarray(made.sample(key, count)), facts, lambda images: {"images": clamped(images)})


def our_disk(count: int) -> Side:
    """`pg.write_samples`."""
    import promptgen_jax as pg

    made, fresh, start = prompt(), folders(), time.perf_counter()

    def run(number=count):
        folder = next(fresh)
        pg.write_samples(made, folder, num_samples=number, seed=SEED, say=lambda line: None)
        return folder

    run(min(count, 16))
    return Side(run, {"compile_seconds": time.perf_counter() - start}, pictures)


def our_cold(count: int) -> Side:
    """`promptgen sample`; what is compiled is kept from one call to the next, as it is for every user."""
    root = scratch()
    prompt().save(root / "prompt")
    command = [sys.executable, "-m", "promptgen_jax", "sample", f"--prompt={root / 'prompt'}", f"--seed={SEED}"]
    run, peak = runner(lambda folder: [*command, f"--output={folder}", f"--num_samples={count}"], root / "compiled")
    start = time.perf_counter()
    run()
    return Side(run, {"first_seconds": time.perf_counter() - start}, pictures, peak)


def sampler_of(count: int):
    """Arrays of the twin, and the noise of the same faces."""
    import jax
    import numpy as np

    from promptgen_jax.draws import noise, seeded

    made = prompt()
    arrays = {"rotations": made.flow.buffers["flows_0"]["rotations"].whole()}
    arrays |= {f"flow/{name}": leaf for name, leaf in flat_tree(made.params).items()}
    arrays |= {f"generator/{name}": leaf for name, leaf in flat_tree(made.generator.weights).items()}
    eps = {
        key: np.asarray(noise(made.prior, key_of, np.arange(count)))
        for key, key_of in {"key": jax.random.key(SEED), "seed": seeded(SEED)}.items()
    }
    return {name: np.asarray(leaf) for name, leaf in arrays.items()}, eps


def torch_memory(count: int) -> Side:
    """The twin."""
    import numpy as np

    from benchmarks.twins import sample

    arrays, eps = sampler_of(count)
    sampler = sample.Sampler(arrays)

    def run():
        return np.concatenate([images.numpy() for images in sample.batches(sampler, eps["key"])])

    return Side(run, numbers=lambda images: {"images": clamped(images)})


def torch_disk(count: int) -> Side:
    """The twin."""
    from benchmarks.twins import sample

    arrays, eps = sampler_of(count)
    sampler, fresh = sample.Sampler(arrays), folders()

    def run():
        folder = next(fresh)
        sample.write(sampler, eps["seed"], folder)
        return folder

    return Side(run, numbers=pictures)


def torch_cold(count: int) -> Side:
    """The twin."""
    import numpy as np

    root = scratch()
    arrays, eps = sampler_of(count)
    np.savez(root / "weights.npz", eps=eps["seed"], **arrays)
    command = [sys.executable, "-m", "benchmarks.twins.sample", str(root / "weights.npz")]
    run, peak = runner(lambda folder: [*command, str(folder), f"--num_samples={count}"], root / "unused")
    return Side(run, {}, pictures, peak)


OURS = {"memory": our_memory, "disk": our_disk, "cold": our_cold}
TWINS = {"memory": torch_memory, "disk": torch_disk, "cold": torch_cold}


def scratch() -> Path:
    """A new folder, which goes when the process ends."""
    KEPT.append(tempfile.TemporaryDirectory(prefix="benchmark"))
    return Path(KEPT[-1].name)


def folders():
    """New folders, without end."""
    root = scratch()
    return (root / str(number) for number in itertools.count())


def runner(command, cache: Path):
    """A function that runs a command, given an output folder, and one that tells its largest memory in MiB."""
    fresh, sizes = folders(), []
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": paths}
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

    def run() -> Path:
        folder = next(fresh)
        process = subprocess.Popen(command(folder), env=variables, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command(folder))}: ended with status {process.returncode}")
        sizes.append(usage.ru_maxrss / 1024)
        return folder

    return run, lambda: sizes[-1]


def pictures(folder: Path) -> dict:
    """The numbered pictures of a folder."""
    import numpy as np
    from PIL import Image

    return {"pictures": np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("[0-9]*.png"))])}


def clamped(images):
    """Images as they are shown, to compare them."""
    return images.clip(0, 1)
