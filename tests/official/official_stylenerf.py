"""Official StyleNeRF files: the sample in the layout of the released ones, and larger ones from seeded tensors."""

import functools
import tempfile
from pathlib import Path

from golden import seeded
from official import GOLDEN
from official_stylegan2 import official_state, write_nvidia

from convert import stylenerf_to_flax
from promptgen_jax.store import weights

SAMPLE = GOLDEN / "stylenerf_tiny" / "official_layout.pkl"


def settings_of(name):
    return seeded.load_manifest(name, GOLDEN)["source"]["generator_kwargs"]


@functools.cache
def converted(name="stylenerf_tiny"):
    """Tree and config of the official file with seeded tensors, by way of the command line."""
    with tempfile.TemporaryDirectory() as folder:
        source = SAMPLE
        if name != "stylenerf_tiny":
            source = write_nvidia(Path(folder) / "official.pkl", official_state(name), _init_kwargs=settings_of(name))
        assert stylenerf_to_flax.main([str(source), f"{folder}/mine"]) == 0
        return weights.load_weights(f"{folder}/mine")
