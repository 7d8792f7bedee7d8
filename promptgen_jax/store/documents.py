"""The JSON files that a run, a prompt and a weight folder consist of, typed: what each has to hold, and of which type.

Entries that are not named here are left alone, so that what later versions add does no harm.
"""

from __future__ import annotations

import contextlib
import pickle
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pydantic

from promptgen_jax.store import disk

Name = Annotated[str, pydantic.Field(min_length=1)]
Count = Annotated[int, pydantic.Field(ge=0)]
Named = dict[str, float | None]
SHOWN, MESSAGE = 3, 400  # problems in a message, and letters of what another library says


class Document(pydantic.BaseModel):
    """Any entries, of which those of a subclass have types."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)


class WeightFolder(Document):
    """config.json of a weight folder."""

    format_version: int
    kind: Name
    sha256: str
    name: str = ""
    license: str | None = None
    converter: str = ""
    options: dict[str, Any] = {}
    attributes: dict[str, list[str]] = {}


class NetworkFolder(WeightFolder):
    """One that a Linen module reads."""

    name: Name
    module: Annotated[str, pydantic.Field(pattern=r"^\w+\.\w+$")]
    independent: bool = False


class GeneratorFolder(NetworkFolder):
    """One of a generator."""

    adapter: Name
    latent_dim: Annotated[int, pydantic.Field(ge=1)]
    image_size: Count
    license: str


class LicensedFolder(NetworkFolder):
    """One whose terms are always stated."""

    license: str


class FlowFolder(WeightFolder):
    """One of a flow."""

    blocks: list[Annotated[int, pydantic.Field(ge=1)]]
    cond_dim: Count
    flow: str = ""
    options: dict[str, Any]


FOLDERS = {
    "network": NetworkFolder,
    "generator": GeneratorFolder,
    "clip": LicensedFolder,
    "mesh": LicensedFolder,
    "flow": FlowFolder,
}


class Pretrained(Document):
    """config.json of a model of transformers, as far as transformers does not check it."""

    architectures: Annotated[list[str], pydantic.Field(min_length=1)] | None = None
    id2label: dict[str, str] | None = None
    problem_type: str | None = None


class SavedGenerator(Document):
    """What a saved prompt stands on."""

    name: str
    checksum: str


class SavedPrompt(Document):
    """prompt.json."""

    generator: SavedGenerator
    flows: list[str]
    conditions: list[dict | None] | None = None
    notes: list[list[Annotated[list[str], pydantic.Field(min_length=2, max_length=2)]] | None] | None = None


class StoredEvaluation(Document):
    """How a run was measured first."""

    num_samples: Count = 0


class StoredRun(Document):
    """config.json of a run, as far as it is used before it is checked as a whole."""

    title: str | None = None
    description: str | None = None
    evaluation: StoredEvaluation | None = None


class Faces(Document):
    """A file that holds the pictures of a sheet edge to edge, `rows` of noise under each of the labels."""

    file: Name
    rows: pydantic.PositiveInt
    labels: Annotated[list[str], pydantic.Field(min_length=1)]
    columns: pydantic.PositiveInt | None = None


class Picture(Document):
    """A picture of a report, and the file of what it shows, so that each can be shown alone."""

    file: Name
    caption: str | None = None
    faces: Faces | None = None


class Estimate(Document):
    """A figure with its spread."""

    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None


class HeadlineRow(Document):
    """A large figure of a report."""

    label: str
    unit: str | None = None
    target: float | None = None
    soft: Named | None = None
    __pydantic_extra__: Named


class FigureRow(Document):
    """A measured number by named draws."""

    name: str
    unit: str | None = None
    target: float | None = None
    __pydantic_extra__: dict[str, float | Estimate | None]


class SharesRow(Document):
    """Shares of the classes of a judge."""

    judge: str
    role: str | None = None
    attribute: str | None = None
    labels: list[str | int | float]
    target: list[float] | None = None
    kl: dict[str, Named | None] | None = None
    num_samples: int | None = None


class OwnFigures(Document):
    """Of an own metric."""

    title: str
    text: str | None = None
    rows: list[FigureRow] | None = None


class Stage(Document):
    """What a report says of a stage."""

    name: Name
    folder: str = "."
    summary: str | None = None
    headline: list[HeadlineRow] | None = None
    shares: list[SharesRow] | None = None
    statistics: list[FigureRow] | None = None
    diversity: list[FigureRow] | None = None
    metrics: dict[str, OwnFigures] | None = None
    images: list[Picture] | None = None
    plots: list[Picture] | None = None
    licenses: list[dict] | None = None
    timing: Named | None = None
    exactness: dict | None = None
    conditions: dict | None = None
    dial: dict | None = None
    notes: list[str] | None = None
    measured: dict | None = None


class Report(Document):
    """report.json."""

    title: Name
    description: str | None = None
    created: str | None = None
    hardware: str | None = None
    command: str | None = None
    versions: dict[str, str] | None = None
    stages: list[Stage] = []


class Times(pydantic.RootModel[Named]):
    """timing.json."""

    model_config = pydantic.ConfigDict(strict=True)


class MetricsLine(Document):
    """A line of metrics.jsonl."""

    step: int
    __pydantic_extra__: Named


def read(path: str | Path, schema: type[pydantic.BaseModel], *, advice: str) -> dict:
    """The JSON object in a file, once it is known to be of a schema.

    Raises:
      FileNotFoundError: no such file.
      ValueError: damaged, or an entry is missing or of another type; `advice` says what to do.
    """
    document = disk.read_json(path, advice=advice)
    check(path, document, schema, advice=advice)
    return document


def check(path: str | Path, document: dict, schema: type[pydantic.BaseModel], *, advice: str) -> None:
    """Raises ValueError that names what is missing or of another type, and the file."""
    try:
        schema.model_validate(document)
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: {problems(error)}. {advice}") from None


def problems(error: pydantic.ValidationError) -> str:
    """What is wrong with a document, in words: the first few problems, then a count."""
    found = [_problem(each) for each in error.errors(include_url=False, include_context=False)]
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def _problem(each) -> str:
    where = ".".join(map(str, each["loc"])) or "it"
    if each["type"] == "missing":
        return f"{where} is missing"
    message = each["msg"].removeprefix("Input ")
    return f"{where} is {reprlib.repr(each['input'])}, and {message[:1].lower()}{message[1:]}"


class DamagedError(ValueError):
    """What somebody else wrote cannot be read; says which file, why, and what to do."""


@contextlib.contextmanager
def one_sentence(path: str | Path, what: str, *, advice: str, foreign: bool = False) -> Iterator[None]:
    """The one door for what others wrote: any failure to read it is one sentence that names the file.

    Sentences of our own, which name it already, pass.

    Args:
      path: the file.
      what: what it could not be read as, "not a complete PyTorch archive".
      advice: what to do.
      foreign: whether only code of others runs within, whose messages may name the file, too, and be long.

    Raises:
      DamagedError: instead of whatever went wrong inside.
    """
    try:
        yield
    except Exception as error:  # of damage there are more kinds than anyone can list
        ours = isinstance(error, DamagedError) or (isinstance(error, OSError) and error.errno is None)
        name = Path(path).name if Path(path).suffix else str(path)  # that of a folder could be any word
        if ours or (not foreign and isinstance(error, (ValueError, OSError)) and name in str(error)):
            raise
        lines = str(error).strip().splitlines() or [""]
        kind = "" if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: "
        reason = f"{kind}{lines[0][:MESSAGE]}".rstrip(": ")
        raise DamagedError(f"{path}: {what} ({reason}). {advice}") from error
