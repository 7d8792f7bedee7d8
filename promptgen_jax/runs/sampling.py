"""Sampling: any number of images of a prompt, over all devices, in memory or into a folder.

Every sample has a number, and noise and a key of its own made of the seed and that number, see `draws`. So sample i is
the same in any batch, on any number of devices and hosts, and devices have nothing to tell each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import jax
import numpy as np

from promptgen_jax import checks, devices, parts
from promptgen_jax.draws import images_by_number, images_of, noise, sample_keys, seeded, settings, truncated
from promptgen_jax.flows.conditions import warn_beyond
from promptgen_jax.store import disk, images, weights
from promptgen_jax.store.claims import claim
from promptgen_jax.store.fingerprint import fingerprint
from promptgen_jax.types import SILENT, makes, view

MOST = 2**31  # images of one seed, whose numbers are of 32 bits
IMAGES_NPZ, LATENTS_NPZ, SHEET, GRID = "images.npz", "latents.npz", "contact_sheet.png", "grid.png"
ABOUT, EARLIER = ".samples.json", "samples.json"  # hidden, as a folder of samples shows pictures; and as it was called
SHEET_IMAGES, SHEET_COLUMNS, SHEET_PIXELS, GRID_FACES, PROGRESS_SECONDS = 64, 8, 128, 9, 5.0


def write_samples(
    prompt,
    folder: str | Path,
    *,
    num_samples: int,
    seed: int = 0,
    batch_size: int | None = None,
    cond: np.ndarray | None = None,
    truncation: float = 1.0,
    latents: bool = False,
    npz: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """Writes `<number>.png` of every image into a folder; the same call goes on where an earlier one was stopped.

    `contact_sheet.png` shows the first 64. With K conditions every noise gives K images, numbers K i to K i + K - 1,
    and `grid.png` shows the first faces as blocks instead. Several hosts share the folder and take turns, image by
    image.

    Args:
      prompt: a `Prompt`.
      folder: made if missing; `.samples.json` in it says what the images are of.
      num_samples: noises to draw; more of them can be asked for later.
      seed: of the noise.
      batch_size: images per device at a time, the size that is compiled; None chooses it by the size of an image.
      cond: conditions, angles in radians, (A,) one for all, or (K, A); needed if and only if the prompt is conditional.
      truncation: of the noise, see `draws.truncated`, above 0 and at most 1.
      latents: also write `latents.npz` with the noise `eps` (N, D), the generator's latents `z` (N K, D), `cond`.
      npz: also write `images.npz` with `arr_0` (N K, H, W, 3) uint8, as programs that compute FID read it.
      say: takes a line of progress.

    Returns:
      The folder.

    Raises:
      ValueError, PermissionError: a count below 1, conditions of a wrong shape, a toy prompt whose samples are points,
        a seed that is no 32-bit number, a folder that cannot be written or holds other images; nothing is half-written.
    """
    folder = disk.local_path("sample: folder", folder)
    checks.check_count("sample: num_samples", num_samples)
    batch_size = devices.images_at_a_time(prompt.image_size, batch_size)
    checks.check_count("sample: batch_size", batch_size)
    checks.check_seed("sample: seed", seed)
    checks.check_number("sample: truncation", truncation, 0, 1, above=True)
    if makes(prompt) == "points":
        raise ValueError(f"sample: {prompt.name} is a toy problem, whose samples are points, not pictures.")
    if cond is not None:
        cond = np.atleast_2d(np.asarray(cond, np.float32))
    total = num_samples * (1 if cond is None else len(cond))
    if total > MOST:
        raise ValueError(f"sample: num_samples: got {num_samples}; expected at most {MOST} images. Lower it.")
    checks.check_cond("sample", cond, prompt.flow.cond_dim, 1 if cond is None else len(cond))
    warn_beyond(prompt.name, prompt.conditions, cond)
    folder = disk.open_folder("sample: folder", folder)
    with disk.locked("sample: folder", folder):
        _claim(folder, _describe(prompt, seed, cond, truncation), _described_earlier(prompt, seed, cond))
        _write(prompt, folder, num_samples, seed, batch_size, cond, truncation, latents=latents, npz=npz, say=say)
    return folder


def _write(
    prompt, folder: Path, num_samples: int, seed: int, batch_size: int, cond, truncation, *, latents, npz, say
) -> None:
    """Writes what is not there yet."""
    per_noise, key = 1 if cond is None else len(cond), seeded(seed)
    total = num_samples * per_noise

    mine = range(jax.process_index(), total, jax.process_count())
    left = np.array([number for number in mine if not images.is_whole_png(folder / _file(number))], int)
    count = jax.local_device_count()
    size = min(batch_size * count, len(left))
    say(f"sampling: {len(left)} of {total} images left, {size} at a time on {count} device(s)")
    arrays = (left // per_noise, *devices.filter_none(None if cond is None else cond[left % per_noise]))
    with ThreadPoolExecutor() as pool, devices.compilations_kept():
        progress, done = _Progress(len(left), say), 0
        function, shared = (images_by_number, ()) if truncation == 1 else (_truncated_images, (np.float32(truncation),))
        written: list[Future] = []
        for made in devices.stream_batches(function, batch_size, *arrays, shared=(prompt, key, *shared)):
            shown, numbers = images.to_uint8(view(prompt, made)), left[done : done + len(made)]
            progress.add(_finish(written))  # of the batch before, while devices and threads were both at work
            written = [
                pool.submit(images.save_png, folder / _file(number), picture)
                for number, picture in zip(numbers, shown, strict=True)
            ]
            done += len(made)
        progress.add(_finish(written))
        devices.wait_for_hosts("samples")
        if devices.is_first_host():
            _write_extras(prompt, folder, key, num_samples, cond, truncation, latents=latents, npz=npz)
    devices.wait_for_hosts("sample extras")


def _finish(written: list[Future]) -> int:
    """Waits for pictures to be written; their number."""
    for future in written:
        future.result()
    return len(written)


def _write_extras(prompt, folder: Path, key, num_samples: int, cond, truncation, *, latents: bool, npz: bool) -> None:
    per_noise = 1 if cond is None else len(cond)
    if per_noise > 1:
        faces = min(num_samples, GRID_FACES)
        shown = _read(folder, faces * per_noise) / np.float32(255)
        columns = next(count for count in range(round(per_noise**0.5), 0, -1) if per_noise % count == 0)
        blocks = shown.reshape(faces, per_noise, *shown.shape[1:])
        images.save_png(folder / GRID, images.block_sheet(blocks, columns=per_noise // columns, per_row=3))
    elif num_samples > 1:
        small = [images.thumbnail(picture, SHEET_PIXELS) for picture in _read(folder, min(num_samples, SHEET_IMAGES))]
        images.save_png(folder / SHEET, images.image_grid(np.stack(small), columns=min(SHEET_COLUMNS, len(small))))
    if npz:
        disk.write_npz(folder / IMAGES_NPZ, arr_0=_read(folder, num_samples * per_noise))
    if latents:
        eps = noise(prompt.prior, key, np.arange(num_samples))
        eps = eps if truncation == 1 else truncated(prompt.prior, eps, truncation)
        rows = {} if cond is None else {"cond": np.tile(cond, (num_samples, 1))}
        z = jax.jit(innermost_latents)(prompt, eps.repeat(per_noise, axis=0), *rows.values())
        disk.write_npz(folder / LATENTS_NPZ, eps=eps, z=z, **rows)


@jax.jit
def _truncated_images(prompt, key, truncation, numbers, *cond):
    eps = truncated(prompt.prior, noise(prompt.prior, key, numbers), truncation)
    return images_of(prompt, sample_keys(key, numbers), eps, *cond)


def innermost_latents(prompt, eps, *cond):
    """Latents (B, D) of the innermost generator, of noise (B, D) of a prompt."""
    stack, _ = prompt.stack()
    z = stack[-1].latents(eps, *cond)
    for inner in reversed(stack[:-1]):
        z = inner.latents(z)
    return z


def _read(folder: Path, count: int) -> np.ndarray:
    """The first pictures (count, H, W, 3), uint8: of thousands, floats would not fit into memory."""

    def read(number):
        return images.to_uint8(images.load_image(folder / _file(number))[None])[0]

    pictures = np.empty((count, *read(0).shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        for number, picture in enumerate(pool.map(read, range(count))):
            pictures[number] = picture
    return pictures


def _file(number: int) -> str:
    return f"{number:06d}.png"


def _claim(folder: Path, about: dict, earlier: dict) -> None:
    """Writes `.samples.json`, or checks that the folder holds images of these very samples.

    A folder that version 0.1.0 began goes on if it holds `earlier`, which is what that version would have written.
    """
    if devices.is_first_host() and (folder / EARLIER).is_file() and not (folder / ABOUT).exists():
        os.replace(folder / EARLIER, folder / ABOUT)
    devices.wait_for_hosts(EARLIER)
    if not (folder / ABOUT).exists() and any(folder.glob("[0-9]*.png")):
        raise ValueError(
            f"sample: folder {folder} holds pictures but no {ABOUT}, so it is not known what they show. Choose another "
            "folder, or delete this one."
        )
    if (folder / ABOUT).exists():
        found = disk.read_json(folder / ABOUT, advice="Choose another folder, or delete this one.")
        if "flows_sha256" in found and found == json.loads(json.dumps(earlier)):
            disk.write_json(folder / ABOUT, about)
        elif found.get("fingerprint") == about["fingerprint"]:  # the generator may have got options since
            about |= {"generator": found.get("generator")}
    claim(
        folder / ABOUT,
        about,
        refusal="sample: folder {} holds images of another run (differs in {}). Choose another folder, or delete "
        "this one.",
    )


def _describe(prompt, seed: int, cond, truncation: float) -> dict:
    """What the images depend on, as JSON."""
    about = {
        "format_version": weights.FORMAT_VERSION,
        "prompt": prompt.name,
        "fingerprint": fingerprint(prompt),
        "generator": parts.describe(prompt.stack()[1]),
        "seed": seed,
        "conditions": None if cond is None else cond.tolist(),
    }
    told = {"settings": settings(), "truncation": 0 if truncation == 1 else truncation}
    return about | {name: value for name, value in told.items() if value}


def _described_earlier(prompt, seed: int, cond) -> dict:
    """As `_describe` in version 0.1.0, which saw no options of flows."""
    stack, generator = prompt.stack()
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves([(each.flow, each.params) for each in stack]):
        digest.update(np.asarray(leaf).tobytes())
    had = [field.name for field in fields(generator) if not field.metadata.get(SILENT)]
    options = {name: getattr(generator, name) for name in had}
    return {
        "format_version": weights.FORMAT_VERSION,
        "prompt": prompt.name,
        "flows_sha256": digest.hexdigest(),
        "generator": {name: value for name, value in options.items() if isinstance(value, (str, int, float, tuple))},
        "seed": seed,
        "conditions": None if cond is None else cond.tolist(),
    }


class _Progress:
    """Says every few seconds how many images are done, and how fast; the first batch, which compiles, apart."""

    def __init__(self, count: int, say: Callable[[str], None]):
        self.count, self.say, self.done, self.first = count, say, 0, 0
        self.started = self.said = time.monotonic()

    def add(self, number: int) -> None:
        if not number:
            return
        now = time.monotonic()
        self.done += number
        if not self.first:
            self.say(f"  first {number} images after {now - self.started:.1f} s")
            self.first, self.started, self.said = self.done, now, now
        elif self.done == self.count or now - self.said > PROGRESS_SECONDS:
            speed = (self.done - self.first) / max(now - self.started, 1e-9)
            self.say(f"  {self.done} of {self.count} images, {speed:.3g} images/s")
            self.said = now
