"""Official checkpoints that weight folders are converted from: one table for configs, converters and messages.

A folder of that name in `ported_weights/` holds the converted file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from promptgen_jax.store import home

OPENAI = "code MIT; no terms are stated for the weights, whose model card restricts use to research"
NVIDIA = "not stated by the publisher; converted from NVIDIA's release, which is for research or evaluation only"
CELEBA = "not stated by the publisher; learnt from CelebA, which is for non-commercial research only"
ARCFACE = "code MIT; no terms are stated for the weights, learnt from MS-Celeb-1M: treat as research only"
DECA = "Max Planck licence: non-commercial research only, no redistribution; see github.com/YadiraF/DECA"
FLAME = "Max Planck licence: registration, no redistribution; see flame.is.tue.mpg.de"
BIGGAN = "not stated by the publisher; converted from DeepMind's BigGAN-deep, learnt from ImageNet"
NVAE = "NVIDIA Source Code License for NVAE: research or evaluation only, also for what is derived from it"
DIFFAE = "code MIT; no terms are stated for the weights, learnt from FFHQ, which is for non-commercial use"
STYLENERF = "CC BY-NC 4.0, parts of the code under NVIDIA's licence: non-commercial only"
INCEPTION = "code Apache-2.0; no terms are stated for the weights, which TensorFlow published, learnt from ImageNet"
FAIRFACE = "data and repository CC BY 4.0; no separate terms are stated for the weights"
# genders are spelt as in the other networks, so that one can judge the other
FAIRFACE_ATTRIBUTES = {
    "race": ("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian", "Middle Eastern"),
    "gender": ("male", "female"),
    "age": ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "70+"),
}
FAIRFACE_FOUR = {"race": ("White", "Black", "Asian", "Indian")}  # of the other file, which is read for race alone
BINARY = ("no", "yes")  # of the attributes of CelebA


class Checkpoint(NamedTuple):
    """An official file.

    Attributes:
      file: its name, and the folder it is unpacked to if that tells it apart.
      url: where it is published.
      converter: the script in `convert/` that reads it.
      license: its terms, as far as they are stated.
      image_size: pixels a side that the network makes or sees, 0 if it has no images.
      kind: of the folder, as in its config.json.
      attributes: labels by attribute, of a classifier.
      sha256: of the file, where its publisher states it, if only its first digits.
      megabytes: of the file, where that is known, 0 where not.
    """

    file: str
    url: str
    converter: str
    license: str
    image_size: int
    kind: str = "generator"
    attributes: Mapping[str, tuple[str, ...]] = {}
    sha256: str = ""
    megabytes: int = 0

    def command(self, name: str) -> str:
        """The command that makes the weight folder `name`."""
        return f"{home.converter(self.converter)} {self.file} ported_weights/{name}"


def _stylegan2(file: str, key: str, image_size: int, license: str = NVIDIA) -> Checkpoint:
    return Checkpoint(file, f"https://www.dropbox.com/s/{key}/{file}", "stylegan2_to_flax.py", license, image_size)


def _biggan(size: int, megabytes: int) -> Checkpoint:
    file = f"biggan-deep-{size}-pytorch_model.bin"
    url = f"https://s3.amazonaws.com/models.huggingface.co/biggan/{file}"
    return Checkpoint(file, url, "biggan_to_flax.py", BIGGAN, size, megabytes=megabytes)


def _nvae(size: int) -> Checkpoint:
    url = "https://drive.google.com/drive/folders/1KVpw12AzdVjvbfEYM_6_3sxTy93wWkbe"
    return Checkpoint("checkpoint.pt", url, "nvae_to_flax.py", NVAE, size)


def _diffae(size: int, key: str) -> Checkpoint:
    file = f"diffae_ffhq{size}.ckpt"
    return Checkpoint(file, f"https://www.dropbox.com/s/{key}/{file}", "diffae_to_flax.py", DIFFAE, size)


def _clip(file: str, megabytes: int, sha256: str) -> Checkpoint:
    url = f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}"
    return Checkpoint(file, url, "clip_to_flax.py", OPENAI, 224, "clip", sha256=sha256, megabytes=megabytes)


def _face(key: str, file: str, converter: str, license: str, image_size: int = 224, **about) -> Checkpoint:
    url = f"https://www.dropbox.com/s/{key}/{about.pop('archive', file)}"
    return Checkpoint(file, url, converter, license, image_size, kind="network", **about)


def _celeba(attribute: str) -> Checkpoint:
    about: dict = {"archive": "celeba.zip", "attributes": {attribute: BINARY}}
    return _face("yzc8ydaa4ggj1zs", f"celeba/{attribute}/best.pth", "celeba_to_flax.py", CELEBA, **about)


# StyleGAN2, DiffAE, StyleNeRF: "Pre-trained checkpoints" in the README of ChenWu98/Generative-Visual-Prompt, 6e3cff2
# The statistics of DiffAE's latents are there too, w5y89y57r9nd1jt/diffae_ffhq256_latent.pkl and, for 128 pixels,
# v1dvsj6oklpz652/diffae_ffhq128_latent.pkl
# BigGAN-deep: PRETRAINED_MODEL_ARCHIVE_MAP of huggingface/pytorch-pretrained-BigGAN; the configuration is beside it
# NVAE: "Checkpoints" in the README of NVlabs/NVAE; one folder per data set, in each a checkpoint.pt
# Face networks: "Pre-trained off-the-shelf models" there; FairFace for four races: the README of dchen236/FairFace
# InceptionV3: FID_WEIGHTS_URL in pytorch_fid/inception.py of mseitzer/pytorch-fid; the file's name has the first eight
# digits of its sha256, the others are those of a copy on the Hugging Face Hub, RaphaelLiu/EvalCrafter-Models at 6040b4d
# CLIP: clip/clip.py of openai/CLIP; the links hold the sha256 of the files
# Sizes: of BigGAN in its README; of CLIP and InceptionV3 those of copies with the same sha256 on the Hugging Face Hub
CHECKPOINTS = {
    "stylegan2_ffhq": _stylegan2("ffhq.pt", "iy0dkqnkx7uh2aq", 1024),
    "stylegan2_metfaces": _stylegan2("metfaces.pt", "lmjdijm8cfmu8h1", 1024),
    "stylegan2_afhqcat": _stylegan2("afhqcat.pt", "z1vts069w683py5", 512),
    "stylegan2_church": _stylegan2("stylegan2-church-config-f.pt", "a0hvdun57nvafab", 256),
    "stylegan2_car": _stylegan2("stylegan2-car-config-f.pt", "x1d19u8zd6yegx9", 512),
    "stylegan2_landscape": _stylegan2(
        "landscape.pt", "hli2x42ekdaz2br", 256, "not stated by the publisher; origin not known"
    ),
    **{f"biggan_deep_{size}": _biggan(size, megabytes) for size, megabytes in ((128, 201), (256, 224), (512, 225))},
    "nvae_celeba64": _nvae(64),
    "nvae_ffhq256": _nvae(256),
    "diffae_ffhq128": _diffae(128, "rsbpxaswnfzsyl1"),
    "diffae_ffhq256": _diffae(256, "ej0jj8g7crvtb5e"),
    "stylenerf_ffhq1024": Checkpoint(
        "StyleNeRF_ffhq_1024.pkl",
        "https://www.dropbox.com/s/n80cr7isveh5yfu/StyleNeRF_ffhq_1024.pkl",
        "stylenerf_to_flax.py",
        STYLENERF,
        1024,
    ),
    "clip_vit_b32": _clip("ViT-B-32.pt", 354, "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "clip_vit_b16": _clip("ViT-B-16.pt", 351, "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "clip_vit_l14": _clip("ViT-L-14.pt", 933, "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "fairface": _face(
        "v1rp0uubk30esdh",
        "res34_fair_align_multi_7_20190809.pt",
        "fairface_to_flax.py",
        FAIRFACE,
        attributes=FAIRFACE_ATTRIBUTES,
    ),
    "fairface_four": Checkpoint(
        "res34_fair_align_multi_4_20190809.pt",
        "https://drive.google.com/drive/folders/1F_pXfbzWvG-bhCpNsRj6F_xsdjpesiFu",
        "fairface_to_flax.py",
        FAIRFACE,
        224,
        kind="network",
        attributes=FAIRFACE_FOUR,
    ),
    "celeba_male": _celeba("Male"),
    "celeba_eyeglasses": _celeba("Eyeglasses"),
    "celeba_young": _celeba("Young"),
    "celeba_blond_hair": _celeba("Blond_Hair"),
    "irse50": _face("qg7co4azsv5sacm", "model_ir_se50.pth", "irse50_to_flax.py", ARCFACE, 112),
    "deca": _face("972j1vgfd19b6gx", "deca_model.tar", "deca_to_flax.py", DECA),
    "inception": Checkpoint(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "inception_to_flax.py",
        INCEPTION,
        299,
        kind="network",
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        megabytes=96,
    ),
    "flame": Checkpoint("generic_model.pkl", "https://flame.is.tue.mpg.de", "flame_to_flax.py", FLAME, 0, kind="mesh"),
}


def how_to_get(name: str) -> str:
    """What to download from where, and the command that converts it, as a sentence for messages."""
    checkpoint = CHECKPOINTS[name]
    return (
        f"Download {checkpoint.file} from {checkpoint.url} (licence: {checkpoint.license}) and run "
        f"`{checkpoint.command(name)}`."
    )
