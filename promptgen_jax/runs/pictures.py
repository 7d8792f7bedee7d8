"""The pictures of a stage: the first samples, none picked, as a sheet and one by one for the report."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import draws
from promptgen_jax.devices import map_batches
from promptgen_jax.ebm import LatentEBM
from promptgen_jax.flows.conditions import Conditions
from promptgen_jax.prompt import Prompt
from promptgen_jax.runs import report
from promptgen_jax.store import images
from promptgen_jax.types import makes, view

SHEET, FACES = "samples.png", "faces.png"  # for people, and edge to edge for the report
FACE_PIXELS = 384  # a side of the latter at most
GRID_SIZE = 3  # values per component of a condition
CONDITION_CAPTION = "One face per block, the same noise under every condition; the first faces, none picked."
PAIR_CAPTION = "The same noise before and after; the first samples, none picked."


def write(name: str, ebm: LatentEBM, prompt: Prompt, key, options: dict, folder: Path) -> list[dict]:
    """Writes the pictures of a stage: the same noise before and after, or under a grid of conditions.

    Of a 2-D toy problem it is the density of the target with samples; of other points nothing.

    Args:
      name: of the stage.
      ebm: its target.
      prompt: its prompt.
      key: of the noise.
      options: of the evaluation, `num_shown` and `columns`.
      folder: of the stage.

    Returns:
      The pictures of the report, see `documents.Picture`.
    """
    key_image = jax.random.fold_in(key, 0)
    if makes(ebm.generator) != "points":
        eps = prompt.prior.sample(key, options["num_shown"])
        if ebm.cond_prior:
            faces = under_conditions(prompt, ebm.cond_prior, key_image, eps)
            images.save_png(folder / SHEET, images.block_sheet(faces, columns=GRID_SIZE, per_row=GRID_SIZE))
            labels, columns = [ebm.cond_prior.in_words(cond) for cond in ebm.cond_prior.grid(GRID_SIZE)], GRID_SIZE
            return _shown(folder, faces, f"{CONDITION_CAPTION}{_axes(ebm.cond_prior)}", labels, columns)
        keys = draws.sample_keys(key_image, np.arange(len(eps)))
        moved = jax.jit(lambda prompt, eps: prompt.latents(eps))(prompt, eps)
        shown = {}
        for when, z in (("before", eps), ("after", moved)):
            made = map_batches(draws.images_of, 16, keys, z, shared=(prompt.generator,))
            shown[when] = view(prompt.generator, made)
        rows = [(f"{when}: {name}", made) for when, made in shown.items()]
        images.save_png(folder / SHEET, images.before_after_sheet(rows, columns=options["columns"]))
        return _shown(folder, np.stack(list(shown.values()), axis=1), PAIR_CAPTION, list(shown))
    if prompt.prior.dim != 2:
        return []
    log_prob = jax.jit(lambda ebm, z: ebm.log_prob(key_image, z))
    eps = prompt.prior.sample(key, 4096)
    report.plot_density(
        folder / SHEET,
        log_density=lambda z: np.asarray(log_prob(ebm, jnp.asarray(z, jnp.float32))),
        samples={"prior": np.asarray(eps), "flow": np.asarray(prompt.latents(eps))},
        extent=(-4, 4, -4, 4),
    )
    caption = "Latent space: contours of the target, with samples of the prior and of the trained flow."
    return [{"file": SHEET, "caption": caption}]


def _shown(folder: Path, faces: np.ndarray, caption: str, labels: list[str], columns: int | None = None) -> list[dict]:
    """The entry of a report for faces (N, K, H, W, 3), which are also written edge to edge, a row a noise."""
    small = [[images.thumbnail(picture, FACE_PIXELS) for picture in images.to_uint8(each)] for each in faces]
    images.save_png(folder / FACES, images.image_grid(np.concatenate(small), columns=len(labels), padding=0))
    about = {"file": FACES, "rows": len(faces), "labels": labels} | ({"columns": columns} if columns else {})
    return [{"file": SHEET, "caption": caption, "faces": about}]


def under_conditions(prompt: Prompt, conditions: Conditions, key, eps) -> np.ndarray:
    """Pictures (N, K, H, W, 3): each noise (N, D) under a grid of K conditions, three values a component."""
    grid = conditions.grid(GRID_SIZE)
    faces = np.repeat(np.arange(len(eps)), len(grid))
    arrays = (draws.sample_keys(key, faces), np.asarray(eps)[faces], np.tile(grid, (len(eps), 1)))
    pictures = map_batches(draws.images_of, 16, *arrays, shared=(prompt,))
    return pictures.reshape(len(eps), len(grid), *pictures.shape[1:])


def condition_sheet(prompt: Prompt, conditions: Conditions, key, eps) -> np.ndarray:
    """`under_conditions` as one picture, a block a row of noise."""
    faces = under_conditions(prompt, conditions, key, eps)
    return images.block_sheet(faces, columns=GRID_SIZE, per_row=GRID_SIZE)


def _axes(conditions: Conditions) -> str:
    """Which way the conditions grow in a block, for the caption; nothing of sentences."""
    directions = ("from left to right", "from top to bottom", "from block row to block row")
    axes = ", ".join(f"{text} {where}" for text, where in zip(conditions.varying()[::-1], directions, strict=False))
    return f" {axes}." if axes else ""
