"""Models of transformers as networks: the same outputs and gradients, labels and folders, and what is refused."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import official_transformers as official
import pytest
from official_transformers import of_jax, of_torch, photographs, torch, transformers

import promptgen_jax as pg
from configs import face_smile
from convert import hub_to_flax
from promptgen_jax.controls.clip import load_clip
from promptgen_jax.draws import Draws
from promptgen_jax.metrics import diversity, frechet
from promptgen_jax.models import preprocess, pretrained, tokenizer
from promptgen_jax.runs import inventory
from promptgen_jax.runs.config import RunConfig

CLASSIFIERS = {
    "vit": official.vit,
    "vit, tanh gelu, no bias": lambda: official.vit(hidden_act="gelu_new", qkv_bias=False, layer_norm_eps=1e-3),
    "resnet, basic": official.resnet,
    "resnet, bottleneck": lambda: official.resnet("bottleneck"),
    "resnet, early strides": lambda: official.resnet(
        "bottleneck", downsample_in_bottleneck=True, downsample_in_first_stage=True
    ),
    "convnext": official.convnext,
    "convnext, no scale": lambda: official.convnext(layer_scale_init_value=0.0),
    "siglip": lambda: official.siglip("SiglipForImageClassification", **official.NAMED),
}
TOWERS = {
    "clip, quick_gelu": official.clip,
    "clip, gelu": lambda: official.clip({"hidden_act": "gelu"}, {"hidden_act": "gelu"}),
    "siglip": official.siglip,
}
QUICK = [("vit", (40, 24)), ("resnet, bottleneck", (33, 24)), ("convnext", (16, 16)), ("clip, quick_gelu", (24, 24))]
FULL = [(name, size) for name in [*CLASSIFIERS, *TOWERS] for size in [(16, 16), (24, 24), (41, 24)]]


def loaded(folder, model, processor=None, **settings):
    return pg.load_network(official.write(folder / "mood", model, processor), **settings)


@pytest.mark.parametrize(
    ("name", "size"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.full) for case in FULL if case not in QUICK)],
)
def test_outputs_and_gradients_are_those_of_transformers(tmp_path, name, size):
    """Images of any size go in as they are: positions are interpolated."""
    tower = name in TOWERS and name not in CLASSIFIERS
    model = (TOWERS if tower else CLASSIFIERS)[name]()
    net, images = loaded(tmp_path, model, do_resize=False), photographs(*size)
    mean, std = (np.float32(official.PROCESSOR[f"image_{part}"]) for part in ("mean", "std"))
    options = {} if name.startswith(("resnet", "convnext")) else {"interpolate_pos_encoding": True}
    function, output = (model.get_image_features, "pooler_output") if tower else (model, "logits")
    made, gradient = of_torch(function, (images - mean) / std, lambda out: out[output], **options)
    got = of_jax(lambda images: net(images)["embedding" if tower else "label"], images)
    official.assert_close(got, (made, gradient / std))


@pytest.mark.parametrize("size", [(16, 16), (40, 24), pytest.param((24, 57), marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "kind", ["Siglip2Model", pytest.param("Siglip2ForImageClassification", marks=pytest.mark.full)]
)
def test_flexible_siglip_2(tmp_path, kind, size):
    """Patches of about the aspect of the image; transformers pads them to a fixed number and masks what it padded."""
    classifies = kind.endswith("Classification")
    model = official.siglip(kind, **(official.NAMED if classifies else {}))
    settings = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 7}
    net, images = loaded(tmp_path, model, settings), photographs(*size)
    way = preprocess.read(tmp_path / "mood")
    pixels = np.asarray(way(jnp.asarray(images)))
    rows, columns = (side // 8 for side in pixels.shape[1:3])
    assert rows * columns < 7
    given = torch.tensor(pixels).requires_grad_()
    cut = given.reshape(2, rows, 8, columns, 8, 3).permute(0, 1, 3, 2, 4, 5).reshape(2, rows * columns, -1)
    padded = torch.nn.functional.pad(cut, (0, 0, 0, 7 - rows * columns))
    inputs = {
        "pixel_values": padded,
        "pixel_attention_mask": torch.tensor([[1] * rows * columns + [0] * (7 - rows * columns)] * 2),
        "spatial_shapes": torch.tensor([[rows, columns]] * 2),
    }
    made = model(**inputs).logits if classifies else model.get_image_features(**inputs).pooler_output
    (made * torch.arange(1.0, made.shape[1] + 1)).sum().backward()
    output = "label" if classifies else "embedding"
    got = of_jax(lambda images: net(images)[output], images)
    _, pullback = jax.vjp(way, jnp.asarray(images))
    official.assert_close(got, (made.detach().numpy(), pullback(given.grad.numpy())[0]))


def test_an_image_classifier_trains_the_shipped_generator_in_one_line(tmp_path):
    folder = official.write(tmp_path / "mood", official.vit())
    happy = pg.load_control("classifier", network=str(folder), target="happy")
    assert happy.network.labels("label") == ("sad", "happy", "angry")
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), (happy,))
    options = {"num_steps": 4, "batch_size": 4, "kl_batch_size": 64, "warmup_steps": 1}
    prompt, history = pg.fit(ebm, flow={"architecture": "coupling", "hidden_dim": 8}, **options)
    assert history[-1]["energy/happy"] < history[0]["energy/happy"]
    prompt.save(tmp_path / "prompt")
    assert pg.Prompt.load(tmp_path / "prompt").sample(jax.random.key(0), 2).shape == (2, 64, 64, 3)


def test_labels_are_found_or_answered_with_the_nearest(tmp_path):
    net = loaded(tmp_path, official.vit())
    assert pg.load_control("classifier", network=net, target="not sad").attribute == "label"
    with pytest.raises(ValueError, match="mood: label: unknown name 'hapy'. Did you mean 'happy'"):
        pg.load_control("classifier", network=net, target="hapy")
    assert pg.load_control("classifier", network="faceapi_expression", target="happy").attribute == "expression"


def test_any_number_of_labels_at_once(tmp_path):
    """Each is an attribute of its own: -log sigmoid of its logit, also once converted; judges see it, too."""
    model = official.vit(problem_type="multi_label_classification")
    folder = official.write(tmp_path / "mood", model)
    assert hub_to_flax.main([str(folder), str(tmp_path / "converted")]) == 0
    assert "Labels: sad, happy, angry." in (tmp_path / "converted" / "SOURCE.md").read_text()
    images = photographs(16, 16)
    mean, std = (np.float32(official.PROCESSOR[f"image_{part}"]) for part in ("mean", "std"))
    for source in (folder, tmp_path / "converted"):
        for target, sign in (("happy", -1), ("not happy", 1)):
            control = pg.load_control("classifier", network=str(source), target=target)
            assert control.attribute == "happy"
            wanted, slope = of_torch(
                lambda pixel_values, sign=sign: torch.nn.functional.softplus(sign * model(pixel_values).logits[:, 1:2]),
                (images - mean) / std,
                lambda energies: energies,
            )
            seen = of_jax(lambda images, control=control: control(None, pg.Sample(images, None))[:, None], images)
            official.assert_close(seen, (wanted, slope / std))
        with pytest.raises(ValueError, match="unknown name 'hapy'. Did you mean 'happy'"):
            pg.load_control("classifier", network=str(source), target="hapy")
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), ())
    about = pg.evaluation.About.of(ebm, {str(folder): ("happy", "sad")})
    draws = {"before": Draws.of_prior(ebm.generator.prior, jax.random.key(0), 4)}
    shares = np.exp(pg.evaluation.observe(draws, about)["before"].log_probs(str(folder), "sad"))
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert pretrained.describe(folder).startswith("cached: ViTForImageClassification, 3 labels: sad, happy, angry")


def test_a_config_names_one(folder):
    config = face_smile.get_config("smoke").to_dict()
    smile = {"kind": "classifier", "network": str(folder), "target": "happy"}
    config["stages"]["smile"]["controls"]["smile"] = smile
    config["evaluation"]["judges"] = {str(folder): ("label",)}
    _, controls, _ = RunConfig.from_dict(config).load_parts()
    assert controls["smile"][0].network.name == "mood"
    smile["target"], config["evaluation"]["judges"][str(folder)] = "hapy", ("lable",)
    with pytest.raises(ValueError, match="(?s)Did you mean 'happy'.*Did you mean 'label'"):
        RunConfig.from_dict(config).load_parts()


@pytest.mark.full
def test_the_command_line_names_one(folder, tmp_path):
    words = ["--config=configs/face_smile.py:smoke", f"--workdir={tmp_path}", "--config.evaluation.num_samples=16"]
    control = "--config.stages.smile.controls.smile"
    words += [f"{control}.network={folder}", f"{control}.attribute=label"]
    done = subprocess.run([sys.executable, "main.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "share of happy (mood, control)" in (tmp_path / "report.json").read_text()


def shards(folder):
    official.vit().save_pretrained(folder, max_shard_size="20kB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1


def bfloat16(folder):
    official.vit().to(torch.bfloat16).save_pretrained(folder)


def newer_names(folder):
    official.vit().save_pretrained(folder)
    names = {"vit.encoder.layer": "vit.layers", "attention.attention.query": "attention.q_proj"}
    names |= {"attention.attention.key": "attention.k_proj", "attention.attention.value": "attention.v_proj"}
    names |= {"attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    rename(folder, names)


def with_a_pooler(folder):
    official.vit().save_pretrained(folder)
    extra = {"vit.pooler.dense.weight": torch.zeros(32, 32), "vit.pooler.dense.bias": torch.zeros(32)}
    rename(folder, {}, extra)


def rename(folder, names, extra=()):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for old, new in names.items():
        tensors = {name.replace(old, new): value for name, value in tensors.items()}
    save_file({**tensors, **dict(extra)}, folder / "model.safetensors")


@pytest.mark.parametrize("write", [shards, bfloat16, newer_names, with_a_pooler])
def test_folders_of_every_age(tmp_path, write):
    write(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(official.PROCESSOR))
    net, wanted = pg.load_network(tmp_path), pg.load_network(official.write(tmp_path / "plain", official.vit()))
    tolerance = 2**-8 if write is bfloat16 else 0
    for one, other in zip(jax.tree.leaves(net.weights), jax.tree.leaves(wanted.weights), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=0)
    assert len(net.checksum) == 64


REFUSED = {
    "another architecture": ({"model_type": "swin", "architectures": ["SwinForImageClassification"]}, "Swin.* is not"),
    "no such model": ({"model_type": "nonesuch"}, "not a configuration that transformers reads"),
    "activation": (
        {"hidden_act": "mish"},
        "hidden_act is 'mish', which is not computed here; expected 'quick_gelu' or",
    ),
    "patches": ({"patch_size": [8, 4]}, r"patch_size is .*8, 4.*; expected a square"),
    "problem": ({"problem_type": "regression"}, "problem_type is 'regression'"),
    "sizes": ({"intermediate_size": 40}, r"block0/mlp_in/bias is \(48,\), expected \(40,\)"),
    "fewer blocks": (
        {"num_hidden_layers": 1},
        "16 problems: unexpected vit.encoder.layer.1.attention.attention.key.bias",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return official.write(tmp_path_factory.mktemp("hub") / "mood", official.vit())


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_by_name_what_is_not_computed(folder, tmp_path, case):
    changes, message = REFUSED[case]
    config = json.loads((folder / "config.json").read_text()) | changes
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        pg.load_network(tmp_path)


def test_names_files_that_are_missing(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no preprocessor_config.json"):
        pg.load_network(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(official.PROCESSOR))
    with pytest.raises(
        FileNotFoundError, match=r"pytorch_model.bin is a pickle: convert it with `python convert/hub_to"
    ):
        pg.load_network(tmp_path)
    with pytest.raises(FileNotFoundError, match="nobody/nothing: no such file or folder here, and not to be had from"):
        pg.load_network("nobody/nothing")


def test_a_text_is_embedded_by_the_tokenizer_of_the_folder(tmp_path):
    """CLIP with a vocabulary of its own, whose end is not the largest id, and SigLIP, which reads the padding too."""
    texts = ["a photo of a smile", "rain"]
    images = photographs(24, 24)
    for name, model in (("clip", official.clip()), ("siglip", official.siglip())):
        folder = official.write(tmp_path / name, model)
        official.write_tokenizer(folder, end=1)
        given = transformers.AutoTokenizer.from_pretrained(folder)(
            texts, padding="max_length", max_length=12, return_tensors="pt"
        )
        with torch.no_grad():
            text = torch.nn.functional.normalize(model.get_text_features(**given).pooler_output)
            pixels = preprocess.read(folder)(jnp.asarray(images))
            pixels = torch.tensor(np.array(pixels)).permute(0, 3, 1, 2)
            image = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output)
        options = {"text": texts, "text_weights": [1.0, 0.5], "num_augmentations": 1, "policy": "", "antialias": True}
        control = pg.load_control("clip", network=str(folder), **options)
        sample = pg.Sample(images=images, z=jnp.zeros((2, 1)))
        got = jax.jit(lambda control, *given: control(*given))(control, jax.random.key(0), sample)
        np.testing.assert_allclose(got, (1 - image @ text.T).numpy() @ [1.0, 0.5], atol=1e-5)
        with pytest.raises(ValueError, match="tokens with start and end; expected at most 12. Shorten it"):
            pg.load_control("clip", network=str(folder), text="rain " * 20)


def test_tokenizers_of_folders_are_read_as_they_are(tmp_path):
    """OpenAI's merges: the ids of the folder's tokenizer, which are those of the one written here."""
    ranks, ids = tokenizer._vocabulary()
    specials = {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    made = transformers.CLIPTokenizer(vocab=ids | specials, merges=list(ranks), model_max_length=77)
    made.save_pretrained(tmp_path)
    texts = ["a photo of a smiling person", "Ünïcode, don't   SHOUT 1999!", "<unk> émigré 🙂"]
    got, mask = tokenizer.tokenize_as(tmp_path, texts, context_length=77)
    np.testing.assert_array_equal(np.where(mask, got, 0), tokenizer.tokenize(texts))


def test_sentencepiece_of_siglip(tmp_path):
    sentencepiece = pytest.importorskip(
        "sentencepiece", reason="sentencepiece, which makes the tokenizer, is not installed"
    )
    pytest.importorskip("google.protobuf", reason="protobuf, which makes the tokenizer, is not installed")
    (tmp_path / "corpus").write_text("a photo of a smile\nit rains on the plain in spain\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus"), model_prefix=str(tmp_path / "spiece"), vocab_size=24, minloglevel=2
    )
    made = transformers.SiglipTokenizer(str(tmp_path / "spiece.model"))
    made.save_pretrained(tmp_path / "folder")
    got, _ = tokenizer.tokenize_as(tmp_path / "folder", ["a smile in Spain"], context_length=16)
    wanted = made(["a smile in Spain"], padding="max_length", max_length=16)["input_ids"]
    np.testing.assert_array_equal(got, wanted)


def test_models_judge_and_lend_their_features(folder, tmp_path):
    clip = official.write(tmp_path / "clip", official.clip())
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), ())
    about = pg.evaluation.About.of(ebm, {str(folder): ("label",), str(clip): ()})
    draws = Draws.of_prior(ebm.generator.prior, jax.random.key(0), 4)
    seen = pg.evaluation.observe({"before": draws}, about)["before"]
    assert seen.log_probs(str(folder), "label").shape == (4, 3)
    assert seen.outputs[str(clip)]["embedding"].shape == (4, 24)
    assert "embedding_cosine" in {figure.name for figure in diversity.measure({"before": seen}, about)}
    for network, width in ((folder, 32), (clip, 24)):
        more = Draws.of_prior(ebm.generator.prior, jax.random.key(1), 40)
        statistics = frechet.of_draws(ebm.generator, more, network=str(network))
        assert statistics.covariance.shape == (width, width)
        assert frechet.frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-6)


def test_the_list_shows_what_is_in_the_cache_of_the_hub(folder, tmp_path, monkeypatch):
    snapshot = tmp_path / "models--me--mood" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = inventory.describe(inventory.take())
    assert "cached: ViTForImageClassification, 3 labels: sad, happy, angry, 0.1 MiB, licence apache-2.0" in text
    net = pg.load_network("me/mood")
    assert (net.name, net.license) == ("me/mood", "apache-2.0")


def test_a_converted_model_needs_neither_transformers_nor_the_folder(folder, tmp_path, capsys):
    """Safetensors and a pytorch_model.bin alike, which is read as data, whole or in shards."""
    pickled, in_shards = tmp_path / "pickled", tmp_path / "in_shards"
    for each in (pickled, in_shards):
        each.mkdir()
        for name in ("config.json", "preprocessor_config.json"):
            (each / name).write_bytes((folder / name).read_bytes())
    state = official.vit().state_dict()
    torch.save(state, pickled / "pytorch_model.bin")
    files = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(state)}
    for file in set(files.values()):
        torch.save({name: value for name, value in state.items() if files[name] == file}, in_shards / file)
    (in_shards / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    for source in (folder, pickled, in_shards):
        assert hub_to_flax.main([str(source), str(tmp_path / "converted")]) == 0
        net, wanted = pg.load_network(tmp_path / "converted"), pg.load_network(folder)
        assert (net.name, net.attributes, net.preprocess) == ("converted", wanted.attributes, wanted.preprocess)
        jax.tree.map(np.testing.assert_array_equal, net.weights, wanted.weights)
        assert "ViTForImageClassification. Labels: sad, happy" in (tmp_path / "converted" / "SOURCE.md").read_text()
    clip = official.write(tmp_path / "clip", official.clip())
    official.write_tokenizer(clip, end=1)
    assert hub_to_flax.main([str(clip), str(tmp_path / "converted_clip")]) == 0
    got, wanted = (load_clip(str(each), ["rain"])[1] for each in (tmp_path / "converted_clip", clip))
    np.testing.assert_array_equal(got, wanted)
    assert hub_to_flax.main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()


NO_TORCH = """
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None  # as if they were not installed
import jax
import promptgen_jax as pg
assert "transformers" not in sys.modules
folder, clip = sys.argv[1:]
control = pg.load_control("classifier", network=folder, target="happy")
text = pg.load_control("clip", network=clip, text="rain", num_augmentations=1)
sample = pg.Sample(images=jax.ShapeDtypeStruct((2, 32, 32, 3), "float32"), z=None)
print(*(jax.eval_shape(each, jax.random.key(0), sample).shape for each in (control, text)))
"""


def test_torch_is_not_needed_and_transformers_only_where_it_is_used(folder, tmp_path):
    clip = official.write(tmp_path / "clip", official.clip())
    official.write_tokenizer(clip, end=1)
    made = subprocess.run([sys.executable, "-c", NO_TORCH, folder, clip], capture_output=True, text=True)
    assert made.stdout.strip() == "(2,) (2,)", made.stderr[-2000:]
