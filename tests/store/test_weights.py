"""Weight folders: sizes that their tensors cannot have."""

import numpy as np
import pytest

from promptgen_jax.store import weights


@pytest.mark.parametrize(("latent_dim", "fits"), [(90_000, True), (90_001, False)])
def test_latents_that_are_maps_may_be_as_many_as_weights(tmp_path, latent_dim, fits):
    """An NVAE of 250 tensors has 467,200 latents, far beyond the longest axis of any tensor."""
    config = {"kind": "generator", "module": "nvae.NVAE", "options": {}, "name": "maps", "license": "MIT"}
    config |= {"adapter": "nvae", "latent_dim": latent_dim, "image_size": 64}
    tree = {"params": {"kernel": np.zeros((3, 3, 100, 100), np.float32)}}
    weights.save_weights(tmp_path / "maps", tree, config)
    if fits:
        assert weights.read_config(tmp_path / "maps")["latent_dim"] == latent_dim
    else:
        with pytest.raises(ValueError, match=r"latent_dim is 90001, which does not fit the 1 tensors"):
            weights.read_config(tmp_path / "maps")
