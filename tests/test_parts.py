"""Parts know what they are: specs, fingerprints, claims on work directories, cards, modules outside the library."""

import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

import promptgen_jax as pg
from promptgen_jax import parts
from promptgen_jax.store import card

POINTS = jnp.arange(3.0)
TRAINING = {"num_steps": 1, "batch_size": 2, "save_every": 1, "quiet": True, "flow": {"num_layers": 2, "hidden_dim": 8}}
OWN = """
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Bright:
    level: float
    weight: float
    name: str = struct.field(pytree_node=False)
    needs_reference: bool = struct.field(pytree_node=False, default=False)

    def __call__(self, key, sample):
        return (jnp.mean(sample.images, axis=(1, 2, 3)) - self.level) ** 2


def build(*, level, weight=1.0, name="bright"):
    return Bright(level=level, weight=weight, name=name)
"""


def distance_to(target):
    return lambda images: jnp.mean(jnp.abs(images - target), axis=(1, 2, 3))


def own(function, **options):
    return pg.FunctionControl(function, name="own", **options)


def moment(mu, **options):
    return pg.load_control("moment", network="faceapi_age_gender", attribute="gender", mu=mu, **options)


def text(words):
    return pg.load_control("clip", network="tinyclip_faces", text=words, name="text", num_augmentations=1, policy="")


def with_three(one, other, third):
    return lambda images: one(images) + other(images) - third(images)


def of_own_class(target):
    @struct.dataclass
    class Near:
        weight: float = 1.0
        aim = target
        name: str = struct.field(pytree_node=False, default="near")
        needs_reference: bool = struct.field(pytree_node=False, default=False)

        def __call__(self, key, sample):
            return distance_to(self.aim)(sample.images)

    return Near()


def of_own_module(target):
    settings = types.ModuleType("settings")
    settings.target = target
    return own(lambda images: distance_to(settings.target)(images))


def mean_of(images):
    return images.mean((1, 2, 3))


def sum_of(images):
    return images.sum((1, 2, 3))


PAIRS = {  # one name, two targets
    "pose": lambda: (pg.load_control("pose", yaw=25.0), pg.load_control("pose", yaw=-25.0)),
    "replaced": lambda: [own(distance_to(0.1)).replace(weight=weight) for weight in (1.0, 2.0)],
    "text": lambda: (text("a smiling woman"), text("a man looking left")),
    "moment": lambda: (moment({"female": 0.3}), moment({"female": 0.7})),
    "number around": lambda: (own(distance_to(0.1)), own(distance_to(0.2))),
    "array around": lambda: (own(distance_to(POINTS)), own(distance_to(POINTS + 1))),
    "code": lambda: (own(lambda images: images.mean((1, 2, 3))), own(lambda images: images.sum((1, 2, 3)))),
    "jitted": lambda: (own(jax.jit(distance_to(0.1))), own(jax.jit(distance_to(0.2)))),
    "met twice": lambda: (own(with_three(mean_of, sum_of, mean_of)), own(with_three(mean_of, sum_of, sum_of))),
    "own class": lambda: (of_own_class(0.1), of_own_class(0.2)),
    "own class, array": lambda: (of_own_class(POINTS), of_own_class(POINTS + 1)),
    "own module": lambda: (of_own_module(0.1), of_own_module(0.2)),
    "weight": lambda: (own(distance_to(0.1)), own(distance_to(0.1), weight=2.0)),
    "lengths": lambda: [pg.load_control("lengths", pairs=((0, 1),), lengths=(x,)) for x in (0.1, 0.2)],
    "canonical": lambda: [pg.load_control("rotation", canonical=(x, 0.0, 0.0)) for x in (0.2, 0.3)],
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_changes_the_target_changes_the_fingerprint(name):
    one, other = PAIRS[name]()
    assert parts.fingerprint(one) != parts.fingerprint(other)
    assert parts.fingerprint(one) == parts.fingerprint(PAIRS[name]()[0])


def test_a_global_of_own_code_is_part_of_it(monkeypatch):
    control = own(lambda images: jnp.mean(images * POINTS, axis=(1, 2, 3)))
    before = parts.fingerprint(control)
    monkeypatch.setitem(globals(), "POINTS", POINTS + 1)
    assert parts.fingerprint(control) != before


@pytest.mark.parametrize(
    "unknown", [object(), np.random.RandomState(0), np.array([None]), {object()}], ids=lambda each: type(each).__name__
)
def test_what_cannot_be_told_apart_is_refused(unknown):
    with pytest.raises(ValueError, match="cannot be told whether it is the same in another run"):
        parts.fingerprint(own(distance_to(unknown)))


def test_the_order_of_sets_and_addresses_are_no_part_of_fingerprints():
    code = (
        "import promptgen_jax as pg\nfrom promptgen_jax import parts\n"
        "def f(x):\n    return x\n"
        "def g(x):\n    return -x\n"
        "def around(which):\n    return lambda images: [h(images) for h in which]\n"
        "print(parts.fingerprint(pg.FunctionControl(around({f, g, 'a', 'b'}))))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "12"
    }
    assert len(found) == 1


def test_fingerprints_are_those_of_another_process():
    code = (
        "import promptgen_jax as pg\nfrom promptgen_jax import parts\n"
        "print(parts.fingerprint(pg.load_control('pose', yaw=25.0)))\n"
        "print(parts.fingerprint(pg.load_generator('synthetic', problem='linear')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    part = [pg.load_control("pose", yaw=25.0), pg.load_generator("synthetic", problem="linear")]
    assert found == [parts.fingerprint(each) for each in part]


def test_specs_hold_all_options_as_json():
    spec = pg.load_control("lengths", pairs=((0, 1),), lengths=np.array([0.1])).spec.to_json()
    assert json.loads(json.dumps(spec)) == {
        "kind": "lengths",
        "options": {"pairs": [[0, 1]], "lengths": [0.1], "sigma": 0.002, "weight": 1.0, "name": "lengths"},
    }
    hash(pg.load_control("identity", options={"input_size": 112}).spec)


def test_another_target_is_refused_on_a_work_directory(tmp_path):
    generator = pg.load_generator("dcgan_digiface")

    def train(yaw):
        return pg.fit(pg.LatentEBM(generator, (pg.load_control("pose", yaw=yaw),)), workdir=tmp_path, **TRAINING)

    prompt, history = train(25.0)
    assert len(history) == 1
    with pytest.raises(ValueError, match=r"another training \(differs in controls.pose.fingerprint"):
        train(-25.0)
    again, history = train(25.0)
    assert history == []
    assert jax.tree.all(jax.tree.map(np.array_equal, prompt.params, again.params))
    about = json.loads((tmp_path / "training.json").read_text())["controls"]["pose"]
    assert about["options"]["yaw"] == 25.0
    assert about["options"]["sigma"] == 5.0
    prompt.save(tmp_path / "prompt")
    assert "yaw 25.0" in (tmp_path / "prompt" / "README.md").read_text()


def test_a_training_of_version_0_1_goes_on(tmp_path):
    generator, control = pg.load_generator("dcgan_digiface"), pg.load_control("pose", yaw=25.0)
    ebm = pg.LatentEBM(generator, (control,))
    pg.fit(ebm, workdir=tmp_path, **TRAINING)
    path = tmp_path / "training.json"
    about = json.loads(path.read_text())
    old = {name: about[name] for name in ("training", "flow")}
    old |= {"generator": [generator.name, generator.checksum], "controls": {"pose": ["PoseControl", 1.0, {}]}}
    path.write_text(json.dumps(old))
    assert pg.fit(ebm, workdir=tmp_path, **TRAINING)[1] == []
    assert json.loads(path.read_text()) == about


@pytest.mark.parametrize(
    "hostile",
    ["a | b\nc", "<script>alert(1)</script>", "[x](https://x.example)", "`code`", "![x](y)", "https://x.example"],
)
def test_names_are_not_live_in_cards(hostile):
    control = {"name": hostile, "kind": hostile, "options": {hostile: hostile}, "weight": 1.0, "networks": hostile}
    _, note = card.training_note([control], {"kind": hostile, "options": {hostile: hostile}}, {"x": hostile})
    table = note.splitlines()[2]
    assert table.replace("\\|", "").count("|") == 6
    for live in ("<script", "](", "://", " `"):
        assert live not in note.replace("\\`", "").replace("\\<", "").replace("\\]", "")


def test_a_control_of_a_module_outside_the_library(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text("")
    (tmp_path / "mine" / "bright.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    control = pg.load_control("mine.bright", level=0.8)
    assert parts.describe(control) == {
        "kind": "Bright",
        "options": {"level": 0.8, "weight": 1.0, "name": "bright", "needs_reference": False},
    }
    with pytest.raises(ValueError, match="unknown name 'levle'. Did you mean 'level'"):
        pg.load_control("mine.bright", levle=0.8)
    with pytest.raises(ValueError, match="option level is missing"):
        pg.load_control("mine.bright")
    with pytest.raises(ValueError, match="mine.brigth: cannot be imported"):
        pg.load_control("mine.brigth")
    with pytest.raises(ValueError, match="the module has no build. Define build"):
        parts.load("controls", "mine.__init__")


def test_trust_is_by_name_of_the_package():
    kinds = ["pose", "mine.bright"]
    parts.check_trusted("prompt.json", kinds, "mine")
    parts.check_trusted("prompt.json", ["pose"], ())
    for trust in ((), "min", ("mine_evil", "bright")):
        with pytest.raises(ValueError, match="trust='mine', on the command line --trust=mine"):
            parts.check_trusted("prompt.json", kinds, trust)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            lambda: pg.load_control("synthetic", energy="quadratic", target=[{}]),
            r"control synthetic: .*target=\[\{\}\]",
        ),
        (lambda: pg.load_control(7), "control: its kind is 7; expected a name. Name one of .*classifier"),
        (lambda: pg.load_control("classifier", network="emotion", target=3), "control classifier: .*target=3"),
        (lambda: pg.load_generator("synthetic", problem=["linear"]), "synthetic"),
        (lambda: pg.load_generator(["dcgan"]), r"generator: unknown name \['dcgan'\]"),
    ],
    ids=["coordinates", "kind", "label", "problem", "generator"],
)
def test_options_of_another_type_are_named(load, message):
    with pytest.raises((TypeError, ValueError), match=message):
        load()
