"""Text control of StyleGAN2 by CLIP: the paper's experiments, one word each after the colon.

python main.py --config=configs/stylegan2_text.py:baby --workdir=runs/baby

Known: baby, girl, boy, asian_man, without_makeup (FFHQ), autumn, winter (Landscape-HQ), cat (AFHQ); with `_smoke`
behind the word, two steps. `--config.stages.text.controls.text.recipe=fast` takes 12 views of an image instead of 50,
see docs/performance.md. The checkpoints are not shipped: a missing one is answered with the file, where it is
published, and the command that converts it. Not run with the published checkpoints here.
Recipe: experiments clip_* of the official repository; the paper's cat (Fig. 4d) has no official config and takes the
recipe of baby.
"""

from configs import pieces
from promptgen_jax import checks

FACE = ("ffhq", 600.0, {"batch_size": 2, "accumulation": 4})
LANDSCAPE = ("landscape", 500.0, {"batch_size": 4, "accumulation": 2})
EXPERIMENTS = {
    "baby": ("a photo of a baby", *FACE),
    "girl": ("a photo of a girl", *FACE),
    "boy": ("a photo of a boy", *FACE),
    "asian_man": ("a photo of an asian man", "ffhq", 800.0, FACE[2]),
    "without_makeup": (
        "a photo of a person without makeup",
        "ffhq",
        1000.0,
        {"batch_size": 2, "accumulation": 1, "num_steps": 5120},
    ),
    "autumn": ("autumn scene", *LANDSCAPE),
    "winter": ("winter scene", *LANDSCAPE),
    "cat": ("a photo of a British shorthair cat", "afhqcat", 600.0, FACE[2]),
}


def get_config(arg: str = "baby"):
    name = (arg or "baby").removesuffix("_smoke")
    checks.check_known("configs/stylegan2_text.py", name, EXPERIMENTS)
    text, weights, weight, recipe = EXPERIMENTS[name]
    generator = {"name": f"stylegan2_{weights}", "truncation_psi": 1.0, "noise": "random"}
    about = f"StyleGAN2 ({weights}) under the CLIP energy of “{text}” (Eq. 3)."
    config = pieces.text_experiment(text, weight, generator, about, pictures={"truncation_psi": 0.7}, **recipe)
    return pieces.two_steps(config) if arg.endswith("_smoke") else config
