"""What a page to play with does, without the page: the same noise before and after, under dials.

A `Studio` is fixed once it is loaded; what a user has chosen travels as `Settings`, so any number of users share one.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from promptgen_jax import checks
from promptgen_jax.draws import images_of, noise, sample_keys, seeded, truncated
from promptgen_jax.editing.blend import blend
from promptgen_jax.editing.invert import invert
from promptgen_jax.flows.sentences import Sentences
from promptgen_jax.prompt import Prompt
from promptgen_jax.runs.sampling import innermost_latents
from promptgen_jax.store.images import to_uint8
from promptgen_jax.types import view

BATCH = 16  # the one size that is compiled
MAX_NUMBER, MAX_SEED = 64, 2**31 - 1
MAX_TEXT = 300  # characters of a sentence
MAX_PIXELS = 5 * 10**7  # of a picture that is brought
STARTS, STEPS = 4, 120  # of the search for a face
PROGRAM = """\
import numpy as np
import promptgen_jax as pg
from promptgen_jax import draws, images

saved = np.load("latents.npz")  # from the button
generator = pg.Prompt.from_pretrained({name!r}).stack()[1]
keys = draws.sample_keys(draws.seeded({seed}), saved["number"])
images.save_png("pictures.png", draws.images_of(generator, keys, saved["z"]))
"""


class Dial(NamedTuple):
    """One condition of one prompt, in the units of people.

    Attributes:
      name: for people.
      unit: "" for none.
      low, high, start: its range, and where it stands at first.
    """

    name: str
    unit: str
    low: float
    high: float
    start: float


class Settings(NamedTuple):
    """What a user has chosen.

    Attributes:
      seed: of the noise.
      number: of pictures.
      truncation: of the noise, see `draws.truncated`.
      weight: 0 for the first prompt, 1 for the second, between for a blend.
      dials: a number for each dial of the studio.
      texts: a sentence for each prompt that takes one.
      face: (D,) latents of a face that stands first, or None.
    """

    seed: int = 0
    number: int = 8
    truncation: float = 1.0
    weight: float = 0.0
    dials: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()
    face: Any = None


class Drawn(NamedTuple):
    """N pictures.

    Attributes:
      before, after: (N, H, W, 3) uint8, of the generator alone and of the prompt.
      number: (N,) of the noise; that of a face is 0, too.
      eps, z: (N, D) the noise, and the generator's latents of `after`.
      conds: for each prompt (A,) as flows take it, or None.
    """

    before: np.ndarray
    after: np.ndarray
    number: np.ndarray
    eps: np.ndarray
    z: np.ndarray
    conds: tuple[np.ndarray | None, ...]


@dataclass(frozen=True)
class Studio:
    """One prompt, or two of one generator that can be blended.

    Attributes:
      names: where the prompts were found, as the command takes them.
      prompts: the prompts.
      dials: of the first prompt and then of the second.
      options: of the generator, as they were given.
    """

    names: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    options: dict = field(default_factory=dict)

    @classmethod
    def load(cls, names: Iterable[str], *, trust: Iterable[str] = (), **options: Any) -> Studio:
        """Reads one or two prompts, puts them on the device, and compiles.

        Args:
          names: folders, or names on the Hub.
          trust: as `Prompt.load`.
          **options: of the generator.

        Raises:
          ValueError: none or more than two, two generators, one that makes points, a condition without a range; else as
            `Prompt.from_pretrained`.
        """
        names = tuple(names)
        if not 1 <= len(names) <= 2:
            raise ValueError(f"play: got {len(names)} prompts; expected one, or two to blend. Name them by --prompt.")
        prompts = [Prompt.from_pretrained(name, trust=trust, **options) for name in names]
        return cls.of(prompts, names, **options)

    @classmethod
    def of(cls, prompts: Iterable[Prompt], names: Iterable[str], **options: Any) -> Studio:
        """Of prompts that are there already; the rest as `load`."""
        prompts, names = tuple(prompts), tuple(map(str, names))
        for prompt in prompts:
            if prompt.makes == "points":
                raise ValueError(f"play: {prompt.name} is a toy problem, whose samples are points, not pictures.")
            if prompt.flow.cond_dim and prompt.conditions is None:
                raise ValueError(
                    f"play: {prompt.name} takes {prompt.flow.cond_dim} conditions, and does not say from which ranges. "
                    "Save it with its conditions: prompt.replace(conditions=...)."
                )
        studio = cls(names, jax.device_put(prompts), options)
        studio.draw(Settings(number=1, dials=studio.start, texts=studio.texts))
        return studio

    @property
    def dials(self) -> tuple[Dial, ...]:
        """Every condition, of the first prompt and then of the second."""
        return tuple(dial for prompt in self.prompts for dial in _dials(prompt))

    @property
    def start(self) -> tuple[float, ...]:
        """Where the dials stand at first."""
        return tuple(dial.start for dial in self.dials)

    @property
    def texts(self) -> tuple[str, ...]:
        """Of each prompt that takes sentences the one that stands there at first, which it was trained on."""
        return tuple(said.texts[0] for said in map(_sentences, self.prompts) if said)

    def unknown(self, settings: Settings) -> list[str]:
        """Words of the sentences that the text tower which embeds them never saw."""
        said = [each for each in map(_sentences, self.prompts) if each]
        told = zip(said, settings.texts, strict=True)
        return [word for each, text in told for word in each.tower().unknown([text])]

    @property
    def generator(self):
        """The innermost generator."""
        return self.prompts[0].stack()[1]

    def draw(self, settings: Settings) -> Drawn:
        """The same noise before and after.

        Image i is that of `promptgen sample` with the same seed, to rounding.

        Raises:
          ValueError: a setting out of its range.
        """
        self._check(settings)
        conds = self.conds(settings)
        rows = tuple(None if cond is None else np.tile(cond, (BATCH, 1)) for cond in conds)
        total = -(-settings.number // BATCH) * BATCH
        given, used = np.zeros((total, self.generator.prior.dim), np.float32), np.zeros(total, bool)
        numbers = np.arange(total)
        if settings.face is not None:
            given[0], used[0], numbers = settings.face, True, np.maximum(numbers - 1, 0)
        dials = (np.float32(settings.truncation), np.float32(settings.weight))
        batches = [
            _draw(self.prompts, seeded(settings.seed), numbers[part], given[part], used[part], *dials, *rows)
            for part in (slice(first, first + BATCH) for first in range(0, total, BATCH))
        ]
        made = [np.concatenate(each)[: settings.number] for each in zip(*jax.device_get(batches), strict=True)]
        before, after = (to_uint8(view(self.generator, each)) for each in made[:2])
        eps, z = made[2:]
        return Drawn(before, after, numbers[: settings.number], eps, z, conds)

    def conds(self, settings: Settings) -> tuple[np.ndarray | None, ...]:
        """For each prompt its condition (A,), as flows take it."""
        return tuple(
            prompt.conditions.read(mine) if prompt.conditions is not None and mine else None
            for prompt, mine in zip(self.prompts, self._written(settings), strict=True)
        )

    def find(self, picture: np.ndarray, seed: int = 0) -> tuple[np.ndarray, float]:
        """The latents (D,) of a picture, uint8 (height, width, 3), and how far it is: see `editing.invert`.

        Its middle square is taken, at the size of the generator.

        Raises:
          ValueError: no such array, or too large a one.
        """
        picture = np.asarray(picture)
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"play: the picture is {picture.dtype} {picture.shape}; expected one in colour.")
        if picture.shape[0] * picture.shape[1] > MAX_PIXELS:
            raise ValueError(f"play: the picture has {picture.shape[:2]} pixels; at most {MAX_PIXELS:,} are taken.")
        size = self.generator.image_size
        small = ImageOps.fit(Image.fromarray(picture), (size, size), Image.Resampling.LANCZOS)
        pixels = np.asarray(small, np.float32)[None] / 255
        found = invert(self.generator, pixels, seeded(seed), num_starts=STARTS, num_steps=STEPS)
        return found.z[0], float(found.residual[0])

    def command(self, settings: Settings) -> str:
        """How to make the same pictures without the page: a command, or a program that reads the saved latents."""
        self._check(settings)
        if 0 < settings.weight < 1 or settings.face is not None:
            return PROGRAM.format(name=self.names[0], seed=settings.seed)
        index = round(settings.weight)
        cond = self._written(settings)[index]
        words = ["promptgen", "sample", f"--prompt={self.names[index]}", "--output=runs/pictures"]
        words += [f"--num_samples={settings.number}", f"--seed={settings.seed}", "--latents"]
        words += [f"--truncation={settings.truncation:g}"] if settings.truncation != 1 else []
        words += [f"--condition={','.join(cond)}"] if cond else []
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        words += [f"--options={options}"] if options else []
        return " ".join(map(shlex.quote, words))

    def _written(self, settings: Settings) -> list[list[str]]:
        """For each prompt its dials, or its sentence, as the command takes them."""
        numbers, texts, written = iter(settings.dials), iter(settings.texts), []
        for prompt in self.prompts:
            dials = [f"{next(numbers):.9g}" for _ in _dials(prompt)]
            written.append([f"text={next(texts)}"] if _sentences(prompt) else dials)
        return written

    def _check(self, settings: Settings) -> None:
        """Raises ValueError unless every setting is in its range, whatever a page lets through."""
        whole = (("seed", settings.seed, 0, MAX_SEED), ("number", settings.number, 1, MAX_NUMBER))
        for name, count, least, most in whole:
            if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= most:
                raise ValueError(f"play: {name} is {count!r}; expected a whole number from {least} to {most:,}.")
        checks.check_number("play: truncation", settings.truncation, 0, 1, above=True)
        checks.check_number("play: weight", settings.weight, 0, 1)
        if len(settings.dials) != len(self.dials):
            raise ValueError(f"play: got {len(settings.dials)} dials; expected {len(self.dials)}.")
        for dial, value in zip(self.dials, settings.dials, strict=True):
            checks.check_number(f"play: {dial.name}", value, dial.low, dial.high)
        if len(settings.texts) != len(self.texts) or not all(isinstance(text, str) for text in settings.texts):
            raise ValueError(f"play: got {settings.texts!r}; expected {len(self.texts)} sentence(s).")
        if any(len(text) > MAX_TEXT for text in settings.texts):
            raise ValueError(f"play: a sentence has more than {MAX_TEXT} characters. Shorten it.")
        if settings.face is not None:
            checks.check_latents("play: face", np.asarray(settings.face)[None], self.generator.prior.dim)


def _sentences(prompt: Prompt) -> Sentences | None:
    """The conditions of a prompt that takes sentences."""
    return prompt.conditions if isinstance(prompt.conditions, Sentences) else None


def _dials(prompt: Prompt) -> list[Dial]:
    if prompt.conditions is None or _sentences(prompt):
        return []
    return [
        Dial(name, unit, low, high, _start(kind, low, high))
        for unit, (name, (low, high, kind)) in zip(
            prompt.conditions.units, prompt.conditions.ranges().items(), strict=True
        )
    ]


def _start(kind: str, low: float, high: float) -> float:
    """Strengths are full, shares in the middle, all others at the canonical condition."""
    return {"strength": high, "share": (low + high) / 2}.get(kind, min(max(0.0, low), high))


@jax.jit
def _draw(prompts, key, numbers, given, used, truncation, weight, *conds):
    """Images before and after (B, H, W, 3), noise and latents (B, D), of noise by number or `given` where `used`."""
    generator = prompts[0].stack()[1]
    eps = noise(generator.prior, key, numbers)
    eps = jnp.where(truncation == 1, eps, truncated(generator.prior, eps, truncation))
    eps = jnp.where(used[:, None], given, eps)
    if len(prompts) == 1:
        z = innermost_latents(prompts[0], eps, *(cond for cond in conds if cond is not None))
    else:
        z = blend(*prompts, eps, weight, cond_first=conds[0], cond_second=conds[1])
    keys = sample_keys(key, numbers)
    return images_of(generator, keys, eps), images_of(generator, keys, z), eps, z
