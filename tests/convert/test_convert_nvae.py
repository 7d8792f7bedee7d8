"""Files of NVAE: which are read, which are refused and how, and where missing ones are to be had."""

import jax
import numpy as np
import official_nvae
import pytest
from official_nvae import SMALL, converted, small_state, torch, write

from convert import nvae_to_flax


def changed(**entries):
    state = small_state() | entries
    return {name: value for name, value in state.items() if value is not None}


REFUSED = {
    "missing": (changed(**{"dec_tower.1.se.se.0.bias": None}), SMALL, {}, "missing dec_tower.1.se.se.0.bias"),
    "extra": (changed(other=np.zeros(3, np.float32)), SMALL, {}, "unexpected other"),
    "nan": (
        changed(**{"dec_tower.0.conv.bias": np.full(16, np.nan, np.float32)}),
        SMALL,
        {},
        "dec_tower.0.conv.bias holds NaN",
    ),
    "other settings": (changed(), SMALL | {"num_latent_per_group": 4}, {}, "wrong entries"),
    "fewer groups": (changed(), SMALL | {"num_groups_per_scale": 2}, {}, "unexpected dec_sampler.3"),
    "one colour": (changed(), SMALL | {"dataset": "mnist"}, {}, "only colour pictures"),
    "no settings": (changed(), {}, {}, "no settings dataset, "),
    "no state": (changed(), SMALL, {"state_dict": None}, "holds no state_dict"),
    "StyleGAN2": (changed(), SMALL, {"state_dict": None, "g_ema": {}}, "this looks like a StyleGAN2 file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_are_refused(case, tmp_path, capsys):
    state, settings, beside, message = REFUSED[case]
    if "g_ema" in beside:
        beside = beside | {"g_ema": {"input.input": torch.zeros(1)}}
    source = write(tmp_path / "checkpoint.pt", state, settings, **beside)
    assert nvae_to_flax.main([str(source), str(tmp_path / "out")]) == 1
    answer = capsys.readouterr().err
    assert message in answer
    assert answer.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_of_every_age_are_read(tmp_path):
    """Older files have no copies of the kernels and fewer settings; DataParallel puts a prefix before all names."""
    old = {name: value for name, value in small_state().items() if not name.endswith("weight_normalized")}
    plain = SMALL | {"ada_groups": False, "num_mixture_dec": 10}
    assert nvae_to_flax.read_options(
        "old", {"args": official_nvae.argparse.Namespace(**plain), "state_dict": old}
    ) == nvae_to_flax.read_options(
        "old",
        {
            "args": official_nvae.argparse.Namespace(
                **{key: value for key, value in plain.items() if key not in nvae_to_flax.DEFAULTS}
            ),
            "state_dict": old,
        },
    )
    for state in (old, {f"module.{name}": value for name, value in old.items()}):
        source = write(tmp_path / "checkpoint.pt", state, SMALL)
        jax.tree.map(np.testing.assert_array_equal, nvae_to_flax.convert(source)[0], converted()[0])


def test_converter_adjusts_statistics_on_request(tmp_path, capsys):
    source = write(tmp_path / "checkpoint.pt", small_state(), SMALL)
    arguments = [str(source), str(tmp_path / "mine"), "--readjust", "2", "--temperature", "0.7"]
    assert nvae_to_flax.main(arguments) == 0
    about = (tmp_path / "mine" / "SOURCE.md").read_text()
    assert "adjusted to 2 batches of 16 samples at temperature 0.7" in about
    assert "statistics of the file" not in about
    assert "checkpoint.pt ported_weights/mine --readjust 2 --temperature 0.7`" in about
    assert nvae_to_flax.main([str(source), str(tmp_path / "other"), "--readjust", "-1"]) == 1
    assert not (tmp_path / "other").exists()
