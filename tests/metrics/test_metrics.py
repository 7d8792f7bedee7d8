"""Metrics of any number of named draws, what controls aim at, and what report, card and JSON say of both."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest
from flax import struct
from helpers import some_prompt

import promptgen_jax as pg
from configs import synthetic_linear
from promptgen_jax import metrics, parts
from promptgen_jax.draws import Draws
from promptgen_jax.evaluation import Estimate, Figure, Figures, Headline, JudgedShares, Measured, stage
from promptgen_jax.metrics import diversity, energies, frechet, shares
from promptgen_jax.metrics._intervals import mean_estimate
from promptgen_jax.runs import report, run
from promptgen_jax.runs.report import sections
from promptgen_jax.types import Aim, aims_of, networks_of

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def debiased():
    """A toy under a moment constraint, and a prompt on it that is drawn, not trained."""
    generator = pg.load_generator("synthetic", problem="mixture2d")
    ebm = pg.LatentEBM(generator, (pg.load_control("synthetic", energy="moment", mu={"a_1": 0.7}, name="mode"),))
    ebm, _ = pg.fit_moments(ebm, KEY)
    return ebm, some_prompt(generator)


@pytest.fixture(scope="module")
def measured(debiased):
    ebm, prompt = debiased
    return stage.measure(prompt, ebm, KEY, num_samples=512)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_number_of_named_draws(debiased, count):
    """Each with its own figures, which a report shows beside each other; equal draws, equal figures."""
    ebm, prompt = debiased
    about = metrics.About.of(ebm, judges={})
    names = [f"method {n}" for n in range(count)]
    drawn = {name: prompt.draws(jax.random.key(n % 4), 64) for n, name in enumerate(names)}
    seen = metrics.observe(drawn, about)
    (row,) = shares.measure(seen, about)
    (energy,) = energies.measure(seen, about)
    assert list(row.shares) == list(row.kl) == list(energy.values) == names
    if count == 5:
        assert row.shares["method 4"] == row.shares["method 0"] != row.shares["method 1"]
    page = str(sections.shares((row,))) + str(sections.statistics((energy,)))
    assert all(page.count(name) >= 3 for name in names)
    assert JudgedShares.from_json(json.loads(json.dumps(row.to_json()))) == row
    line = Headline("share", {name: 10.0 * n for n, name in enumerate(names)}, "%")
    assert all(f"{name} {10 * n}" in line.text() for n, name in enumerate(names))


def test_a_constraint_says_target_soft_and_hard_together(measured):
    """In the console's line, the page's headline and the card; before and after."""
    line, row = measured.headline[0], measured.shares[0]
    assert line.target == pytest.approx(70)
    assert line.soft["after"] == pytest.approx(100 * row.shares["after"]["a_1"].soft.mean)
    assert line.values["before"] == pytest.approx(100 * row.shares["before"]["a_1"].hard.mean)
    numbers = [f"{value:.3g}" for found in (line.soft, line.values) for value in found.values()]
    told = "share of a_1 (synthetic, control): target 70 %, soft {} -> {} %, hard {} -> {} %".format(*numbers)
    assert line.text() == told
    stage_json = measured.to_json()
    assert f"- {told}" in report.effect_note(stage_json)[1]
    card = str(sections.headline(measured.headline))
    for text in ("target 70.0", "soft ", "hard ", *(sections.number(value) for value in line.soft.values())):
        assert text in card


def test_distances_before_after_and_reweighted_are_in_page_card_and_json(measured):
    row = measured.to_json()["shares"][0]
    assert list(row["kl"]) == ["before", "after", "weighted"]
    card = report.effect_note(measured.to_json())[1]
    page = str(sections.distances(measured.shares))
    for draws, title in (("before", "Before"), ("after", "After"), ("weighted", "Reweighted")):
        assert f"| mode, by synthetic | {title.lower()} | {row['kl'][draws]['soft']:.3g} [" in card
        assert f'<td data-column="{title}"><span>{sections.number(row["kl"][draws]["soft"])}<' in page


def test_measured_says_with_what(debiased, measured):
    assert measured.options == {"num_samples": 512, "judges": {"synthetic": ["mode"]}, "metrics": [], "samplers": []}
    line = str(sections.measured_line({**measured.options, "seed": 7}))
    assert "Measured on 512 samples · judges: synthetic (mode) · seed 7" in line
    assert Measured.from_json(json.loads(json.dumps(measured.to_json()))) == measured


@pytest.mark.parametrize(
    ("options", "aims"),
    [
        (
            {"kind": "classifier", "network": "emotion", "attribute": "emotion", "target": "not happy"},
            [("emotion", "emotion", ("happy",), (), "share", False)],
        ),
        (
            {"kind": "moment", "network": "faceres", "attribute": "gender", "mu": {"female": 0.25}},
            [("faceres", "gender", ("female", "male"), (("female", 0.25), ("male", 0.75)), "share", False)],
        ),
        (
            {"kind": "synthetic", "energy": "moment", "mu": {"a_1": 0.75}, "count": "hard"},
            [("synthetic", "mode", ("a_1", "a_2"), (("a_1", 0.75), ("a_2", 0.25)), "share", False)],
        ),
        ({"kind": "pose", "yaw": 25.0}, [("facemesh", "pose", (), (("yaw", 25.0),), "degrees", False)]),
        ({"kind": "rotation"}, [("facemesh", "rotation", (), (), "degrees", True)]),
        ({"kind": "identity"}, [("faceres", "embedding", (), (), "", False)]),
        ({"kind": "synthetic", "energy": "wells"}, [("synthetic", "well", (), (), "share", False)]),
        ({"kind": "synthetic", "energy": "quadratic", "target": (1.0, 0.0)}, []),
        ({"kind": "lengths", "pairs": [(48, 54)], "lengths": [0.05]}, []),
    ],
    ids=["classifier", "moment", "first choices", "pose", "rotation", "identity", "wells", "quadratic", "lengths"],
)
def test_controls_say_what_they_are_about(options, aims):
    control = parts.load_control(**options)
    found = [tuple(getattr(aim, field.name) for field in dataclasses.fields(Aim)) for aim in aims_of(control)]
    count = options.get("count", "soft")
    assert [(network.name, *rest) for network, *rest in found] == [(*aim, count) for aim in aims]
    assert {network.name for network, *_ in found} <= {network.name for network in networks_of(control)} | {"synthetic"}


@struct.dataclass
class Bluish:
    """An own judge of pictures."""

    name: str = struct.field(pytree_node=False, default="colours")

    def __call__(self, images):
        return {"colour": jnp.mean(images, axis=(1, 2))}

    def labels(self, attribute):
        return ("red", "green", "blue")


@struct.dataclass
class Blue:
    """An own control that says what it is about."""

    judge: Bluish = Bluish()
    name: str = struct.field(pytree_node=False, default="blue")
    weight: float = 1.0
    needs_reference: bool = struct.field(pytree_node=False, default=False)

    @property
    def aims(self):
        return (Aim(self.judge, "colour", labels=("blue",), unit="share"),)

    def __call__(self, key, sample):
        return -self.judge(sample.images)["colour"][:, 2]


def coloured(*controls):
    function = lambda z: jnp.broadcast_to(jax.nn.sigmoid(4 * z)[:, None, None, :], (len(z), 4, 4, 3))  # noqa: E731
    generator = pg.FunctionGenerator(pg.Prior.standard(3), function, image_size=4)
    return pg.LatentEBM(generator, controls), some_prompt(generator)


def test_an_own_control_is_measured_by_what_it_says():
    """And one that says nothing by its energy alone."""
    silent = pg.FunctionControl(lambda images: images[:, 0, 0, 0], name="silent")
    ebm, prompt = coloured(Blue(), silent)
    found = stage.measure(prompt, ebm, KEY, num_samples=32)
    assert [line.label for line in found.headline] == ["share of blue (colours, control)"]
    assert [row.name for row in found.statistics] == ["energy of blue", "energy of silent"]
    assert aims_of(silent) == networks_of(silent) == ()


def test_weights_count_copies():
    """Weighted spread and mean are those of as many copies."""
    rng = np.random.default_rng(0)
    images, embeddings = rng.random((6, 4, 4, 3), np.float32), rng.normal(size=(6, 5))
    copies = np.array([1, 0, 3, 2, 0, 1])
    repeated = diversity.diversity(np.repeat(images, copies, axis=0))
    assert diversity.diversity(images, weights=copies)["pixel_std"] == pytest.approx(repeated["pixel_std"], rel=1e-5)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = np.outer(copies, copies) * (1 - np.eye(6))
    cosine = diversity.diversity(images, embeddings, weights=copies)["embedding_cosine"]
    assert cosine == pytest.approx(np.sum(pairs * (units @ units.T)) / pairs.sum())
    values = rng.normal(size=6)
    weighted, plain = mean_estimate(values, copies), mean_estimate(np.repeat(values, copies))
    assert (weighted.mean, weighted.std) == pytest.approx((plain.mean, plain.std))
    equal = mean_estimate(values, np.full(6, 3.0))
    assert dataclasses.astuple(equal) == pytest.approx(dataclasses.astuple(mean_estimate(values)))


@pytest.fixture
def own_metric(tmp_path, monkeypatch):
    """The module of the documentation, as a reader would write it."""
    (block,) = [block for block in pages.blocks(pages.ROOT / "docs" / "extending.md") if "brightness" in block.title]
    (tmp_path / block.title).parent.mkdir()
    (tmp_path / block.title).write_text(block.content)
    monkeypatch.syspath_prepend(tmp_path)
    yield "mypackage.brightness"
    for name in ("mypackage", "mypackage.brightness"):
        sys.modules.pop(name, None)


def test_an_own_metric_from_python(own_metric):
    ebm, prompt = coloured(Blue())
    by_name, by_function = (
        stage.measure(prompt, ebm, KEY, num_samples=32, metrics=metrics).own
        for metrics in ([own_metric], [parts.find("metrics", own_metric).measure, lambda seen, about: None])
    )
    (row,) = by_name[own_metric].rows
    assert by_function == by_name
    images = prompt.generator(KEY, prompt.prior.sample(KEY, 32))
    assert row.values["before"].mean == pytest.approx(float(jnp.mean(images)), rel=1e-4)
    assert list(row.values) == ["before", "after", "weighted"]


def test_an_own_metric_from_a_config(own_metric, tmp_path):
    config = synthetic_linear.get_config("smoke").to_dict()
    config["evaluation"] |= {"metrics": (own_metric,), "num_samples": 64}
    page = run.train_and_evaluate(config, tmp_path / "run").read_text()
    found = json.loads((tmp_path / "run" / "quadratic" / "evaluation.json").read_text())
    assert found["metrics"][own_metric]["rows"][0]["name"] == "mean brightness"
    assert found["measured"]["seed"] == config["seed"]
    for text in ("Brightness", "0 is black, 1 is white.", "mean brightness", "own metrics: mypackage.brightness"):
        assert text in page
    assert "| mean mean brightness |" in (tmp_path / "run" / "quadratic" / "prompt" / "README.md").read_text()
    config["evaluation"]["metrics"] = ("mypackage.brightnes",)
    with pytest.raises(ValueError, match=r"metric mypackage\.brightnes: cannot be imported"):
        run.train_and_evaluate(config, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_real_pictures_are_measured_beside(tmp_path):
    """By the network that is named, which then judges too; the page says what they were."""
    ebm, prompt = coloured(pg.FunctionControl(lambda images: images[:, 0, 0, 0], name="red"))
    real = frechet.of_images(np.random.default_rng(0).random((2, 70, 4, 4, 3), np.float32), network="tinyclip_faces")
    real.save(tmp_path / "real.npz")
    asked = {"tinyclip_faces": str(tmp_path / "real.npz")}
    found = stage.measure(prompt, ebm, KEY, num_samples=136, real=asked)
    between, apart = found.own["frechet"].rows
    assert apart.name == f"{between.name} to real pictures" == "FD (tinyclip_faces) to real pictures"
    assert all(value.mean > 0 for value in apart.values.values())
    assert found.options["real"] == {"tinyclip_faces": "real.npz"}
    assert "real pictures: real.npz" in str(sections.measured_line(found.options))


def test_figures_survive_json():
    figures = Figures("Title", (Figure("a", {"x": Estimate(1.0), "y": Estimate(2.0, 0.5, 1.0, 3.0)}, "m", 4.0),), "why")
    assert Figures.from_json(json.loads(json.dumps(figures.to_json()))) == figures


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda ebm, prompt: parts.find("metrics", "diversty"), "Did you mean 'diversity'"),
        (lambda ebm, prompt: parts.find("metrics", "json.decoder"), r"json\.decoder: the module has no measure"),
        (lambda ebm, prompt: metrics.observe({}, metrics.About.of(ebm, {})), "named nothing"),
        (
            lambda ebm, prompt: metrics.observe({"judge": prompt.draws(KEY, 2)}, metrics.About.of(ebm, {})),
            "named judge",
        ),
        (
            lambda ebm, prompt: metrics.observe(
                {"other": Draws.of_prior(pg.Prior.standard(3), KEY, 2)}, metrics.About.of(ebm, {})
            ),
            r"latents are \(2, 3\); expected \(batch, 2\)",
        ),
        (lambda ebm, prompt: metrics.About.of(ebm, {"emotion": ("emotoin",)}), "Did you mean 'emotion'"),
        (
            lambda ebm, prompt: stage.measure(prompt, ebm, KEY, num_samples=4, metrics=[lambda seen, about: 3.0]),
            "returned a float; expected Figures",
        ),
    ],
    ids=range(7),
)
def test_bad_input(debiased, call, match):
    with pytest.raises(ValueError, match=match):
        call(*debiased)


def test_names_of_the_first_version_are_there():
    names = "distance_to_target diversity evaluate_conditions exactness identity_distances kl_to_target log_weights"
    assert all(callable(getattr(pg.evaluation, name)) for name in [*names.split(), "resample", "shares"])
    assert pg.evaluation.bias.shares is pg.evaluation.shares
    assert pg.evaluation.conditions.evaluate_conditions is pg.evaluation.evaluate_conditions
    assert pg.evaluation.mixture.evaluate_mixtures
