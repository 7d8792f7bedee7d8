"""Every class, de-bias and iterated experiment of the paper from its config, with *reduced* networks in place of the
published weights: the same files, adapters and stages, small StyleGAN2, ResNets, CLIP and flows of random weights."""

import json

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import official_clip
import pytest

import promptgen_jax as pg
from configs import stylegan2_class, stylegan2_debias, stylegan2_makeup
from promptgen_jax import training
from promptgen_jax.generators import stylegan2
from promptgen_jax.models import resnet
from promptgen_jax.runs import run as runs
from promptgen_jax.store import weights
from promptgen_jax.training import train

pytestmark = official_clip.ALLOWED
REDUCED = {"widths": [2, 4, 8, 16], "blocks": [1, 1, 1, 1]}
REDUCED_FLOW = {"num_layers": 2, "hidden_dim": 16}


def save_generator(folder):
    generator = stylegan2.tiny()
    config = {
        "kind": "generator",
        "adapter": "stylegan2",
        "module": "stylegan2.StyleGAN2",
        "options": {"channels": [8, 8, 4], "style_dim": 8, "mapping_layers": 2},
        "name": folder.name,
        "latent_dim": 6,
        "image_size": 16,
        "license": "MIT",
    }
    weights.save_weights(folder, jax.tree.map(np.asarray, generator.weights), config)


def save_classifier(folder, images, *, class_name, attributes, **options):
    """A classifier whose logits on these images have mean 0 and standard deviation 3."""
    options = REDUCED | options
    module = getattr(resnet, class_name)(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})
    rng = np.random.default_rng(len(folder.name))
    shapes = jax.eval_shape(module.init, jax.random.key(0), images[:1])["params"]
    variables = jax.tree.map(lambda leaf: rng.normal(0, np.prod(leaf.shape[:-1]) ** -0.5, leaf.shape), shapes)
    variables = jax.tree.map(np.float32, variables)
    outputs = jax.jit(lambda variables, images: module.apply({"params": variables}, images))(variables, images)
    logits = np.concatenate([outputs[name] for name in attributes], axis=1)
    logits = logits[:, 1:] if class_name == "CelebA" else logits
    head, scale = variables["head"], 3 / np.std(logits, axis=0)
    head |= {"kernel": head["kernel"] * scale, "bias": (head["bias"] - np.mean(logits, axis=0)) * scale}
    config = {
        "kind": "network",
        "module": f"resnet.{class_name}",
        "options": options,
        "attributes": attributes,
        "name": folder.name,
        "license": "MIT",
    }
    weights.save_weights(folder, jax.tree.map(np.asarray, variables), config)


@pytest.fixture(scope="module", autouse=True)
def reduced_weights(tmp_path_factory):
    """A folder of weights under the published names."""
    root = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMPTGEN_WEIGHTS", str(root))
        for name in ("stylegan2_ffhq", "stylegan2_metfaces"):
            save_generator(root / name)
        generator = pg.load_generator("stylegan2_ffhq")
        z = generator.prior.sample(jax.random.key(1), 64)
        images = jax.jit(lambda generator, z: generator(jax.random.key(0), z))(generator, z)
        for attribute in ("Male", "Young", "Eyeglasses", "Blond_Hair"):
            save_classifier(
                root / f"celeba_{attribute.lower()}",
                images,
                class_name="CelebA",
                attribute=attribute,
                attributes={attribute: ["no", "yes"]},
            )
        attributes = {name: [str(i) for i in range(n)] for name, n in (("race", 7), ("gender", 2), ("age", 9))}
        save_classifier(root / "fairface", images, class_name="FairFace", attributes=attributes)
        state = official_clip.small_state()
        small = official_clip.convert(official_clip.write_archive(root / "small.pt", state), root / "clip_small")
        small.rename(root / "clip_vit_b32")
        yield root


CONFIGS = {f"class:{name}": (stylegan2_class, name) for name in stylegan2_class.EXPERIMENTS}
CONFIGS |= {f"debias:{name}": (stylegan2_debias, name) for name in stylegan2_debias.EXPERIMENTS}


@pytest.mark.full
@pytest.mark.parametrize("name", CONFIGS)
def test_takes_a_step(name):
    module, arg = CONFIGS[name]
    config = module.get_config(f"{arg}_smoke").to_dict()
    (stage,) = config["stages"].values()
    ebm = pg.LatentEBM(pg.load_generator(**config["generator"]), helpers.build_controls(stage))
    ebm, fit = training.fit_moments(ebm, jax.random.key(0), num_samples=512)
    assert (fit is None) == name.startswith("class")
    options, flow = stage["training"] | {"num_steps": 1, "batch_size": 2}, stage["flow"] | REDUCED_FLOW
    prompt, history = training.fit(ebm, flow=flow, quiet=True, **options)
    assert np.isfinite(history[-1]["loss"])
    start = train.init_flow(jax.random.fold_in(jax.random.key(42), 2**31 - 1), ebm.generator.prior, **flow)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), prompt.params, start[1])
    assert max(jax.tree.leaves(moved)) > 0


def run(config, workdir, num_samples):
    config.evaluation.num_samples = num_samples
    runs.train_and_evaluate(config.to_dict(), workdir)
    return json.loads((workdir / "report.json").read_text())["stages"]


@pytest.mark.full
def test_beta_is_fitted_without_training(tmp_path):
    """The report reweights the generator's own samples to equal shares; a control of the fitted kind needs no flow."""
    (stage,) = run(stylegan2_debias.get_config("beta_ffhq_smoke"), tmp_path / "run", 1024)
    assert sorted(row["attribute"] for row in stage["shares"]) == ["age", "gender", "race"]
    distance = {when: sum(row["kl"][when]["soft"] for row in stage["shares"]) for when in ("before", "weighted")}
    assert distance["weighted"] < 0.7 * distance["before"]  # what is left is the scatter of few effective samples
    for row in stage["shares"]:
        assert row["kl"]["weighted"]["soft"] < row["kl"]["before"]["soft"]
        shares = [[row[when][label]["soft"] for label in row["labels"]] for when in ("before", "after")]
        np.testing.assert_allclose(*shares, atol=1e-5)
    assert not (tmp_path / "run" / "debias" / "metrics.jsonl").exists()


@pytest.mark.full
def test_makeup_stands_on_the_text_at_psi_07(tmp_path):
    config = stylegan2_makeup.get_config("smoke")
    config.stages.text.controls.text.text = "no makeup"  # the small CLIP reads 16 tokens
    text, gender = run(config, tmp_path / "run", 256)
    assert [row["judge"] for row in text["shares"]] == ["fairface"]
    (row,) = [row for row in gender["shares"] if row["target"]]
    assert row["attribute"] == "gender"
    # the second stage starts where the first one ended but for psi
    assert row["before"] != text["shares"][0]["after"]


@pytest.mark.full
def test_table_2(tmp_path):
    """Four cells of two attributes, each of a prompt of its own, against the generator."""
    config = stylegan2_class.get_config("table2_smoke")
    pair = config.mixtures["age and gender"]
    config.order = pair.stages
    config.stages = {name: config.stages[name] for name in pair.stages}
    config.mixtures = {"age and gender": pair}
    *stages, table = run(config, tmp_path / "run", 64)
    assert [stage["name"] for stage in stages] == list(pair.stages)
    (row,) = table["shares"]
    assert row["labels"] == [
        f"Male: {male}, Young: {young}" for male in ("yes", "not yes") for young in ("yes", "not yes")
    ]
    assert row["num_samples"] == 64
    assert sum(row["after"][label]["hard"] for label in row["labels"]) == pytest.approx(1)
    assert {"soft", "hard"} <= row["kl"]["after"].keys()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "equal numbers of each" in page


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"stages": ("male_yong",)}, "config.mixtures.x.stages.*'male_young'"),
        ({"judges": ((("celeba_male", "Male", "maybe"),),)}, "label of Male"),
    ],
)
def test_bad_mixtures_are_refused_first(tmp_path, change, match):
    config = stylegan2_class.get_config("male_young_smoke").to_dict()
    config["mixtures"] = {"x": {"stages": ("male_young",), "judges": ()} | change}
    with pytest.raises(ValueError, match=match):
        runs.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
