"""What a part is stands in its spec, also after `replace`, in prompt.json; own packages of saved files need consent."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import some_prompt

import main
import promptgen_jax as pg
from configs import synthetic_linear
from promptgen_jax import parts
from promptgen_jax.controls import clip
from promptgen_jax.controls._shares import fill_shares
from promptgen_jax.generators import stylegan2
from promptgen_jax.runs import finished, run
from promptgen_jax.types import Spec

KEY = jax.random.key(0)
OLD = Path(__file__).parent / "golden" / "prompt_0_1"
FACES = {"network": "faceapi_age_gender", "attribute": "gender"}
SHADES = """
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import struct

import promptgen_jax as pg
from promptgen_jax.types import Spec, spec_field

(Path(__file__).parent / "imported").touch()


@struct.dataclass
class Shades:
    prior: pg.Prior
    gain: float = struct.field(pytree_node=False)
    name: str = struct.field(pytree_node=False, default="shades")
    checksum: str = struct.field(pytree_node=False, default="")
    image_size: int = struct.field(pytree_node=False, default=4)
    spec: Spec | None = spec_field()

    def __call__(self, key, z):
        return jnp.broadcast_to(jax.nn.sigmoid(self.gain * z)[:, None, None, :], (len(z), 4, 4, 3))


def build(*, gain=1.0, offsets=(0, 1)):
    return Shades(prior=pg.Prior.standard(3), gain=gain)


def measure(seen, about):
    return None
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of somebody's, which leaves a file behind when it is imported."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "shades.py").write_text(SHADES)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    forget()


def forget():
    for name in ("theirs", "theirs.shades"):
        sys.modules.pop(name, None)


def control(kind, **options):
    return pg.load_control(kind, **options)


REPLACED = {  # what is replaced, and the option that says so, or None where no option can
    "weight": (lambda: control("pose", yaw=25.0), {"weight": 2.0}, ("weight", 2.0)),
    "weight array": (lambda: control("pose", yaw=25.0), {"weight": jnp.float32(2)}, ("weight", 2.0)),
    "target": (lambda: control("classifier", **FACES, target="female"), {"target": "male"}, ("target", "male")),
    "array": (lambda: control("pose", yaw=25.0), {"target": jnp.zeros(3)}, None),
    "shares": (lambda: control("moment", **FACES, mu={"female": 0.3}), {"mu": jnp.array([0.1, 0.9])}, None),
    "prior": (lambda: pg.load_generator("dcgan_digiface"), {"prior": pg.Prior.standard(50, 50)}, None),
    "toy": (lambda: pg.load_generator("synthetic", problem="linear", dim=2), {"bias": jnp.ones(2)}, None),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_field_is_in_the_spec_or_ends_it(name):
    make, changes, expected = REPLACED[name]
    part = make()
    assert parts.spec_of(part) == part.spec
    assert parts.spec_of(part.replace(**{field: getattr(part, field) for field in changes})) == part.spec
    found = parts.spec_of(part.replace(**changes))
    if expected is None:
        assert found is None
        assert parts.describe(part.replace(**changes))["kind"] == type(part).__name__
    else:
        option, value = expected
        assert found.options == {**part.spec.options, option: value}
        assert found.kind == part.spec.kind


def test_shares_left_to_the_generator_are_no_other_target():
    """`fit_moments` fills in what the user left open; what was asked for stays what it was."""
    asked = control("moment", network="faceapi_expression", attribute="expression", mu={"happy": 0.7})
    own = np.full(len(asked.mu), 1 / len(asked.mu))
    filled = [asked.replace(mu=jnp.asarray(fill_shares(asked.mu, own) + [0, shift, *5 * [0]])) for shift in (0, 0.1)]
    assert parts.describe(filled[0])["options"]["mu"] == {"happy": 0.7}
    assert parts.spec_of(filled[1]) is None


NETWORKS = {
    "classifier": ({"attribute": "gender", "target": "female"}, "faceapi_age_gender"),
    "moment": ({"attribute": "gender"}, "faceapi_age_gender"),
    "pose": ({"yaw": 25.0}, "facemesh"),
    "rotation": ({}, "facemesh"),
    "identity": ({"options": {"input_size": 112}}, "faceres"),
    "clip": ({"text": "a smiling woman"}, "tinyclip_faces"),
    "sentence": ({}, "tinyclip_faces"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_by_name_or_as_an_object(kind):
    options, name = NETWORKS[kind]
    loaded = clip.load_towers(name) if kind == "clip" else pg.load_network(name)
    by_name, by_object = (control(kind, network=network, **options) for network in (name, loaded))
    assert parts.fingerprint(by_name) == parts.fingerprint(by_object)
    assert parts.describe(by_object)["options"]["network"] == f"{name} {loaded.checksum}"


@pytest.mark.parametrize("kind", ["classifier", "clip"])
def test_what_is_no_network_is_refused(kind):
    network = pg.load_network("facemesh") if kind == "clip" else 3
    with pytest.raises(
        TypeError, match="facemesh is no CLIP" if kind == "clip" else "network is a int; expected a name"
    ):
        control(kind, network=network, **NETWORKS[kind][0])


def test_a_saved_prompt_says_what_it_was_trained_with(tmp_path):
    """Generator, controls, objective and flow, with all options; card and reloaded prompt go by that."""
    asked = control("synthetic", energy="quadratic", target=(1, 0), name="q")
    ebm = pg.LatentEBM(pg.load_generator("synthetic", problem="linear", dim=2), (asked,))
    flow = {"num_layers": 2, "hidden_dim": 8}
    prompt, _ = pg.fit(ebm, flow=flow, num_steps=1, batch_size=4, objective="score_function", quiet=True)
    prompt.save(tmp_path / "prompt")
    about = json.loads((tmp_path / "prompt" / "prompt.json").read_text())
    assert about["generator"]["spec"] == {"kind": "synthetic", "options": {"problem": "linear", "dim": 2, "seed": 0}}
    (trained,) = about["trained"]
    assert (trained["flow"]["kind"], trained["flow"]["options"]["hidden_dim"]) == ("realnvp", 8)
    (told,) = trained["controls"]
    assert told["checksums"] == {}
    assert {"kind": told["kind"], "options": told["options"]} == asked.spec.to_json()
    assert trained["objective"] == {"kind": "score_function", "options": {"batch_size": 4}}
    assert trained["training"]["num_steps"] == 1
    again = pg.Prompt.load(tmp_path / "prompt")  # no generator= for a toy any more
    assert again.recipe == prompt.recipe
    np.testing.assert_array_equal(again.sample(KEY, 3), prompt.sample(KEY, 3))
    again.save(tmp_path / "again")
    cards = [(tmp_path / name / "README.md").read_text() for name in ("prompt", "again")]
    assert "| q | synthetic | energy quadratic" in cards[0]
    assert "objective score_function" in cards[0]
    assert cards[0] == cards[1]
    about["trained"][0]["controls"] = [{"name": "q"}]
    (tmp_path / "prompt" / "prompt.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"prompt\.json: damaged"):
        pg.Prompt.load(tmp_path / "prompt")


def test_a_prompt_of_version_0_1_loads():
    """As it was saved, with ranges in degrees and no specs."""
    prompt = pg.Prompt.load(OLD)
    np.testing.assert_allclose(np.degrees(prompt.conditions.high), [20, 15.5], rtol=1e-6)
    assert prompt.conditions.components == (("nod", "angle"), ("turn", "angle"))
    assert prompt.notes == (("Training", "as it was"),)
    assert prompt.sample(KEY, 2, cond=jnp.zeros(2)).shape == (2, 64, 64, 3)


def test_a_generator_comes_back_with_its_options(tmp_path, monkeypatch):
    """Those that it had when it was saved, unless others are asked for; its weights by name."""
    tiny = stylegan2.tiny()
    built = []

    def build(*, weights="here", truncation_psi=1.0, noise="random"):
        built.append((weights, truncation_psi, noise))
        return tiny.replace(truncation_psi=truncation_psi, noise=noise)

    monkeypatch.setattr(stylegan2, "build", build)
    generator = parts.load("generators", "stylegan2", weights="there").replace(truncation_psi=0.5)
    some_prompt(generator).save(tmp_path / "prompt")
    pg.Prompt.load(tmp_path / "prompt")
    pg.Prompt.load(tmp_path / "prompt", truncation_psi=0.7)
    assert built[1:] == [("there", 0.5, "random"), ("there", 0.7, "random")]


def test_a_prompt_on_an_own_generator_is_rebuilt_with_consent(package, tmp_path):
    generator = pg.load_generator("theirs.shades", gain=2.0, offsets=[3, 4])
    prompt = some_prompt(generator)
    folder = tmp_path / "prompt"
    prompt.save(folder)
    forget()
    (package / "imported").unlink()
    for load in (pg.Prompt.load, pg.Prompt.from_pretrained):
        with pytest.raises(ValueError, match=r"prompt\.json: names a part of the package 'theirs'.* --trust=theirs"):
            load(folder)
    for trust in ("their", ["mine"], ()):
        with pytest.raises(ValueError, match="names a part"):
            pg.Prompt.load(folder, trust=trust)
    assert main.main(["--mode=sample", f"--prompt={folder}", f"--output={tmp_path / 'out'}", "--num_samples=2"]) == 2
    assert not (package / "imported").exists()
    again = pg.Prompt.load(folder, trust="theirs")
    assert again.generator.gain == 2.0
    assert again.generator.spec == Spec.of("theirs.shades", {"gain": 2.0, "offsets": (3, 4)})
    np.testing.assert_array_equal(again.sample(KEY, 3), prompt.sample(KEY, 3))
    assert pg.Prompt.load(folder, generator=generator).generator is generator  # named by the user: no question
    arguments = ["--mode=sample", f"--prompt={folder}", f"--output={tmp_path / 'out'}", "--num_samples=2"]
    assert main.main([*arguments, "--trust=others,theirs"]) == 0


def test_a_finished_run_asks_for_consent_and_a_config_of_ones_own_does_not(package, tmp_path, capsys):
    config = synthetic_linear.get_config("smoke").to_dict()
    config["evaluation"] |= {"metrics": ("theirs.shades",), "num_samples": 32}
    config["stages"]["quadratic"]["training"] = None
    workdir = tmp_path / "run"
    run.train_and_evaluate(config, workdir)
    forget()
    (package / "imported").unlink()
    evaluate = ["--mode=evaluate", f"--workdir={workdir}", "--config.evaluation.num_samples=16"]
    assert main.main(evaluate) == 2
    assert "config.json: names a part of the package 'theirs'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="names a part of the package 'theirs'"):
        finished.load_prompt(workdir)
    assert not (package / "imported").exists()
    assert finished.load_prompt(workdir, trust="theirs").name == "quadratic"
    assert main.main([*evaluate, "--trust=theirs"]) == 0
    forget()
    own = tmp_path / "own.py"
    broken = config | {"seed": -1}
    own.write_text(f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({broken!r})\n")
    assert main.main(["--mode=evaluate", f"--config={own}", f"--workdir={workdir}"]) == 2
    assert "config.seed: got -1" in capsys.readouterr().err  # and no question


def test_kinds_in_a_config_are_found_wherever_they_stand():
    config = {
        "generator": {"name": "a.generator", "weights": "no.kind"},
        "stages": {
            "s": {"controls": {"c": {"kind": "b.control", "text": "no.kind"}}, "training": {"objective": "c.o"}}
        },
        "evaluation": {"metrics": ["d.metric"], "judges": {"no.kind": ["x"]}},
        "title": "no.kind",
    }
    assert set(parts.kinds_in(config)) == {"a.generator", "b.control", "c.o", "d.metric"}
    assert list(parts.kinds_in({"generator": "broken", "stages": None})) == []
