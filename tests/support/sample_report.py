"""A report with an entry of every kind, and the work directory it belongs to."""

import json
import math

import numpy as np
from PIL import Image

from promptgen_jax.metrics import shares as bias
from promptgen_jax.store import images, logs

SHARE_LABELS = ["neutral", "happy", "surprised"]


def shares(seed):
    logits = np.random.default_rng(seed).normal(size=(200, 3))
    return bias.shares(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)), labels=SHARE_LABELS)


def pictures(num, seed=0, size=16):
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    tint = np.random.default_rng(seed).random((num, 1, 1, 3))
    return ((np.stack([x, y, 1 - x], axis=-1) + tint) / 2).astype(np.float32)


def full_report():
    return {
        "title": "Smiling faces",
        "description": "A frozen generator is taught to smile.",
        "created": "2026-11-22T04:31:07+00:00",
        "hardware": "2 CPU cores",
        "command": "python main.py --config=configs/smile.py",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "stages": [
            {
                "name": "smile",
                "folder": "smile",
                "summary": "The control is an expression classifier.",
                "headline": [
                    {"label": "Happy", "before": 20.3, "after": 88.1, "unit": "%"},
                    {"label": "Energy", "before": 2.312, "after": 0.2471, "unit": "nats"},
                ],
                "images": [
                    {
                        "file": "samples.png",
                        "caption": "Same noise before and after.",
                        "faces": {"file": "faces.png", "rows": 8, "labels": ["before", "after"]},
                    },
                    {"file": "wide.png", "caption": "Many."},
                    {"file": "photo.jpg"},
                    {"file": "gone.png", "caption": "lost"},
                    {"file": "broken.png"},
                ],
                "shares": [
                    {
                        "judge": "faceapi_expression",
                        "role": "control",
                        "attribute": "expression",
                        "labels": SHARE_LABELS,
                        "target": [0.25, 0.5, 0.25],
                        "before": shares(0),
                        "after": shares(1),
                        "weighted": shares(2),
                        "kl": {
                            "before": {"soft": 0.3312, "soft_low": 0.301, "soft_high": 0.352, "hard": 0.4021},
                            "after": {"soft": 0.0179, "soft_low": 0.0111, "soft_high": 0.0262, "hard": 0.0243},
                        },
                        "num_samples": 4096,
                    },
                    {
                        "judge": "emotion",
                        "role": "independent judge",
                        "labels": SHARE_LABELS,
                        "after": shares(3),
                    },
                ],
                "statistics": [
                    {
                        "name": "yaw",
                        "unit": "degrees",
                        "before": {"mean": 1.73, "std": 17.1, "low": 1.18, "high": 2.22},
                        "after": {"mean": 21.6, "std": 6.93, "low": 21.39, "high": 21.81},
                        "target": 25,
                    }
                ],
                "diversity": [{"name": "pixel_std", "before": 0.2103, "after": 0.1984}],
                "exactness": {
                    "num_samples": 4096,
                    "ess": 1231.4,
                    "log_z": -1.862,
                    "log_z_low": -1.911,
                    "log_z_high": -1.815,
                    "log_z_reference": -1.853,
                    "log_z_reference_low": -1.902,
                    "log_z_reference_high": -1.806,
                    "kl": 0.842,
                    "kl_low": 0.793,
                    "kl_high": 0.903,
                    "loss": 4.104,
                    "loss_optimum": 1.862,
                    "notes": ["On fresh noise."],
                },
                "plots": [{"kind": "target_vs_samples", "file": "density.npz"}],
                "timing": {"compile_seconds": 41.2, "train_seconds": 88.4, "steps": 200, "images": 6400},
                "licenses": [{"name": "dcgan_digiface", "license": "MIT", "source": "https://example.org/w"}],
                "notes": ["Happy means a visible smile."],
            },
            {"name": "second", "headline": [{"label": "Yaw", "after": 12}]},
        ],
    }


def make_workdir(path, report):
    folder = path / "smile"
    with logs.MetricLogger(folder, total_steps=200, log_every=5, write_line=lambda _: None) as logger:
        for step in range(1, 201):
            decay = math.exp(-step / 30)
            logger.log(step, {"loss": 4.1 + 5 * decay, "energy/smile": 2 * decay, "prior": 140, "grad_norm": decay})
    images.save_png(folder / "samples.png", images.before_after_sheet([("a", pictures(4)), ("b", pictures(4, 1))]))
    pairs = np.stack([pictures(8), pictures(8, 1)], axis=1).reshape(16, 16, 16, 3)
    images.save_png(folder / "faces.png", images.image_grid(pairs, columns=2, padding=0))
    images.save_png(folder / "wide.png", images.image_grid(pictures(100), columns=100))
    Image.fromarray(images.image_grid(pictures(1, size=64))).save(folder / "photo.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n not a picture")
    (path / "report.json").write_text(json.dumps(report))
    (path / "config.json").write_text(json.dumps({"controls": {"smile": {"weight": 3.25}}}))
    return path
