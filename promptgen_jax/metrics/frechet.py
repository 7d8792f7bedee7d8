"""Fréchet distance of features: how far two sets of pictures are apart, as FID is with the features of InceptionV3.

    d² = |m - m'|² + tr(C + C' - 2 (C C')^(1/2))

with means m and covariances C of features. The number means something only beside others of the same network, so it is
named after it: of the shipped faceres "FD (faceres)". FID is that of InceptionV3, with clean-fid's resize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from promptgen_jax import devices
from promptgen_jax.draws import Draws, images_of
from promptgen_jax.metrics._figures import Estimate, Figure, Figures
from promptgen_jax.metrics._observed import EMBEDDING, About, Observed, embeddings
from promptgen_jax.models import inception
from promptgen_jax.models.network import Network, load_network
from promptgen_jax.store import images as pictures
from promptgen_jax.store import weights

NETWORK = "faceres"
INCEPTION = {inception.CLEAN: "{}ID", inception.PLAIN: "{}ID (pytorch-fid)"}  # how distances are called, by the resize
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEXT = (
    "Distance of means and covariances of features to those of {reference}, or of real pictures. Small samples are too "
    "far from anything, so compare only draws of one number, here with more samples than features."
)


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, in float64.

    Attributes:
      mean: (F,).
      covariance: (F, F), unbiased.
      features: what they are of, e.g. "faceres".
      num_samples: effective number, or None where a file does not tell.
    """

    mean: np.ndarray
    covariance: np.ndarray
    features: str = ""
    num_samples: float | None = None

    def save(self, path: str | Path) -> None:
        """Writes `mu` and `sigma` as clean-fid names them, with the name of the features, atomically."""
        count = np.nan if self.num_samples is None else self.num_samples
        weights.write_npz(Path(path), mu=self.mean, sigma=self.covariance, features=self.features, num_samples=count)


class Accumulator:
    """Mean and covariance of any number of weighted features, batch by batch, in constant memory and in float64."""

    def __init__(self, features: str = ""):
        """Of features of that name; none yet."""
        self.features, self.total, self.squares, self.largest = features, 0.0, 0.0, -np.inf
        self.mean: Any = None
        self.scatter: Any = None

    def add(self, features, log_weight=None) -> Accumulator:
        """Takes in features (N, F), with log weights (N,), nats, up to one constant for all batches.

        Raises:
          ValueError: not (N, F), another F than before, or numbers that are not finite.
        """
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or not np.isfinite(rows).all() or (self.mean is not None and rows.shape[1] != len(self.mean)):
            wanted = "(N, F)" if self.mean is None else f"(N, {len(self.mean)})"
            raise ValueError(f"frechet: features are {rows.shape}; expected {wanted}, all finite. Flatten them.")
        log_weight = np.zeros(len(rows)) if log_weight is None else np.asarray(log_weight, np.float64)
        if self.mean is None:
            self.mean, self.scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1],) * 2)
        largest = max(self.largest, log_weight.max(initial=-np.inf))
        weight = np.exp(log_weight - largest) if largest > -np.inf else np.zeros(len(rows))
        total = weight.sum()
        if not total:
            return self  # these weigh nothing
        shrink = np.exp(self.largest - largest)
        self.total, self.squares, self.largest = self.total * shrink, self.squares * shrink**2, largest
        self.scatter *= shrink
        mean = weight @ rows / total
        centred, apart = rows - mean, mean - self.mean
        self.scatter += (centred * weight[:, None]).T @ centred
        self.scatter += np.outer(apart, apart) * self.total * total / (self.total + total)
        self.total, self.squares = self.total + total, self.squares + np.sum(weight**2)
        self.mean = self.mean + apart * total / self.total
        return self

    @property
    def size(self) -> float:
        """Effective number of what was taken in, (Σ w)² / Σ w²."""
        return self.total**2 / self.squares if self.total else 0.0

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance of all that was taken in.

        Raises:
          ValueError: no more effective samples than features, so that the covariance would be singular.
        """
        if self.mean is None or self.size <= len(self.mean):
            count = "F" if self.mean is None else len(self.mean)
            raise ValueError(
                f"frechet: {self.size:.4g} effective samples of {count} features; the covariance needs more samples "
                "than features. Take more."
            )
        return Statistics(self.mean, self.scatter / (self.total - self.squares / self.total), self.features, self.size)


def features_of(network: Network) -> str:
    """What features of a network are called: after it, and after the resize where that is another one than clean-fid's.

    Statistics of one resize are refused beside those of another.
    """
    module = network.module
    plain = isinstance(module, inception.InceptionV3) and module.resize != inception.CLEAN
    return f"{network.name}, {module.resize}" if plain else network.name


def called(letter: str, network: Network | None, name: str) -> str:
    """How a distance of features is called, "FID" or "FD (faceres)", by its letter and the network of that name."""
    module = None if network is None else network.module
    if isinstance(module, inception.InceptionV3):
        return INCEPTION[module.resize].format(letter)
    return f"{letter}D ({name})"


def frechet_distance(one: Statistics, other: Statistics) -> float:
    """The squared Fréchet distance d² of two normal distributions, as FID is given.

    Raises:
      ValueError: features of another network or number.
    """
    if one.mean.shape != other.mean.shape or (one.features and other.features and one.features != other.features):
        raise ValueError(
            f"frechet: features are {one.mean.shape} of {one.features or 'unknown'} and {other.mean.shape} of "
            f"{other.features or 'unknown'}; expected the same. Use one network for both."
        )
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    inner = root @ other.covariance @ root  # it has the eigenvalues of C C', and is symmetric
    cross = np.sum(np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)))
    apart = one.mean - other.mean
    return float(apart @ apart + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross)


def of_folder(folder: str | Path, *, network: str | Network = NETWORK, batch_size: int = 64) -> Statistics:
    """Statistics of all pictures of a folder, and of those in it, which may differ in size.

    Raises:
      FileNotFoundError: no such folder; ValueError: no pictures, damaged ones, or too few for a covariance.
    """
    return of_images(_batches(_files(Path(folder)), batch_size), network=network)


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"frechet: folder {folder}: no such folder. Give one of pictures.")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"frechet: folder {folder} holds no pictures ({', '.join(SUFFIXES)}). Give another one.")
    return files


def _batches(files: list[Path], batch_size: int) -> Iterator[np.ndarray]:
    """Pictures of one size together, as many as a batch holds."""
    batch: list[np.ndarray] = []
    for image in map(pictures.load_image, files):
        if batch and (len(batch) == batch_size or image.shape != batch[0].shape):
            yield np.stack(batch)
            batch = []
        batch.append(image)
    yield np.stack(batch)


def of_images(batches: Iterable, *, network: str | Network = NETWORK) -> Statistics:
    """Statistics of batches of images (B, H, W, 3) in [0, 1], which need not fit into memory together.

    Raises:
      ValueError: a network without `embedding`, or too few images for a covariance.
    """
    network = load_network(network).that_returns(EMBEDDING)
    found = Accumulator(features_of(network))
    for batch in batches:
        found.add(_features(network, batch))
    return found.statistics()


def of_draws(
    generator: Any, draws: Draws, *, network: str | Network = NETWORK, batch_size: int | None = None
) -> Statistics:
    """Statistics of what a generator makes of draws, weighted as they are; of another generator, say, `Draws.of_prior`.

    Raises:
      ValueError: as `of_images`.
    """
    network = load_network(network).that_returns(EMBEDDING)
    found, done = Accumulator(features_of(network)), 0
    arrays, log_weight = (draws.key, draws.z), np.asarray(draws.log_weight)
    batch_size = devices.seen_at_a_time(generator.image_size, batch_size)
    for features in devices.stream_batches(_features_of, batch_size, *arrays, shared=(network, generator)):
        found.add(features, log_weight[done : done + len(features)])
        done += len(features)
    return found.statistics()


def load_statistics(path: str | Path, *, features: str = "") -> Statistics:
    """Statistics of an .npz with `mu` and `sigma`, as clean-fid and pytorch-fid write them.

    Args:
      path: of the file.
      features: the network they are of, where the file does not tell.

    Raises:
      FileNotFoundError: no such file; ValueError: it holds no such arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"frechet: {path}: no such file. Give an .npz with mu and sigma.")
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = np.asarray(file["mu"], np.float64), np.asarray(file["sigma"], np.float64)
            features = features or (str(file["features"]) if "features" in file else "")
            count = float(file["num_samples"]) if "num_samples" in file else np.nan
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"frechet: {path}: holds no statistics ({error}). Give an .npz with mu and sigma.") from None
    if covariance.shape != 2 * mean.shape or mean.ndim != 1:
        raise ValueError(f"frechet: {path}: mu is {mean.shape} and sigma {covariance.shape}; expected (F,) and (F, F).")
    return Statistics(mean, covariance, features, None if np.isnan(count) else count)


def of_real(path: str | Path, *, network: str | Network = NETWORK) -> Statistics:
    """Statistics of real pictures: of a folder of them, or of an .npz as `load_statistics` reads it.

    Raises:
      FileNotFoundError, ValueError: as `of_folder` and `load_statistics`; statistics of another network.
    """
    network = load_network(network).that_returns(EMBEDDING)
    if Path(path).is_dir():
        return of_folder(path, network=network)
    found, features, wanted = load_statistics(path), features_of(network), _num_features(network)
    if found.features not in ("", features) or len(found.mean) != wanted:
        raise ValueError(
            f"frechet: {path}: {len(found.mean)} features of {found.features or 'unknown'}; expected {wanted} of "
            f"{features}. Give statistics of {features}."
        )
    return replace(found, features=features)


def check_real(network: str, path: str | Path, num_samples: int) -> None:
    """Raises, before any work, as `of_real`, and ValueError for no more samples than the network has features."""
    loaded = load_network(network).that_returns(EMBEDDING)
    if num_samples <= _num_features(loaded):
        raise ValueError(
            f"frechet: {num_samples} samples of {_num_features(loaded)} features of {network}; the covariance needs "
            "more samples than features. Set config.evaluation.num_samples higher."
        )
    if Path(path).is_dir():
        _files(Path(path))
    else:
        of_real(path, network=loaded)


def _num_features(network: Network) -> int:
    return jax.eval_shape(network, jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))[EMBEDDING].shape[1]


def measure(seen: Mapping[str, Observed], about: About) -> Figures | None:
    """Distance of all draws to the reference, by every network that gives an `embedding`, and to real pictures.

    Nothing without such a network, and where there are not more samples than features.
    """
    rows = []
    for network, features in embeddings(seen).items():
        found = {name: Accumulator(network).add(each, seen[name].draws.log_weight) for name, each in features.items()}
        known = {name: each.statistics() for name, each in found.items() if each.size > len(each.mean)}
        title, reference = called("F", about.networks.get(network), network), known.get(about.reference)
        others = {name: each for name, each in known.items() if name != about.reference}
        if reference is not None and others:
            rows.append(_row(title, others, reference))
        if network in about.real and known:
            rows.append(_row(f"{title} to real pictures", known, about.real[network]))
    return Figures("Fréchet distance", tuple(rows), TEXT.format(reference=about.reference)) if rows else None


def _row(title: str, found: Mapping[str, Statistics], reference: Statistics) -> Figure:
    return Figure(title, {name: Estimate(frechet_distance(each, reference)) for name, each in found.items()})


@jax.jit
def _features(network: Callable, images):
    return network(images)[EMBEDDING]


@jax.jit
def _features_of(network: Callable, generator: Any, keys, z):
    images = images_of(generator, keys, z)
    return network(jnp.round(255 * jnp.clip(images, 0, 1)) / 255)[EMBEDDING]  # as they would be read from a file
