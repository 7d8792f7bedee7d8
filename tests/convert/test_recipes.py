"""Converters of the large generators take every tensor of their file once."""

from collections import Counter

import official_biggan
import official_diffae
import official_nvae
import official_stylenerf
import pytest

from convert import reading

OFFICIAL = {"biggan": official_biggan, "diffae": official_diffae, "nvae": official_nvae}
OFFICIAL |= {"stylenerf": official_stylenerf}


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_tensor_is_used_once(name, monkeypatch):
    """And those that are known and not needed, such as the filters of StyleNeRF, by no part."""
    build, seen = reading.build_tree, []

    def recorded(where, tensors, recipe, ignored=()):
        seen.append(
            (set(tensors), Counter(source for part in recipe.values() for source in part.sources), set(ignored))
        )
        return build(where, tensors, recipe, ignored)

    monkeypatch.setattr(reading, "build_tree", recorded)
    OFFICIAL[name].converted.__wrapped__()
    ((tensors, used, ignored),) = seen
    assert max(used.values()) == 1
    assert used.keys() == tensors - ignored
    assert len(used) > 50
