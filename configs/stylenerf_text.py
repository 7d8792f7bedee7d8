"""Text control of StyleNeRF (FFHQ 1024) by CLIP: the paper's experiment of Fig. 4a.

python main.py --config=configs/stylenerf_text.py:baby --workdir=runs/stylenerf_baby

With `baby_smoke`, two steps. The checkpoints are not shipped: a missing one is answered with the file, where it is
published, and the command that converts it. Not run with the published checkpoints here.
Recipe: experiment clip_a_baby_ffhq1024_stylenerf of the official repository, whose gradient skips the volume rendering;
with --config.generator.block_gradient=False it does not.
"""

from configs import pieces
from promptgen_jax import checks

EXPERIMENTS = {"baby": ("a photo of a baby", 600.0)}
GENERATOR = {"name": "stylenerf_ffhq1024", "truncation_psi": 1.0, "camera": "random", "block_gradient": True}


def get_config(arg: str = "baby"):
    name = (arg or "baby").removesuffix("_smoke")
    checks.check_known("configs/stylenerf_text.py", name, EXPERIMENTS)
    text, weight = EXPERIMENTS[name]
    about = f"StyleNeRF (FFHQ 1024) under the CLIP energy of “{text}” (Eq. 3)."
    recipe = {"batch_size": 2, "accumulation": 4}
    config = pieces.text_experiment(text, weight, GENERATOR, about, pictures={"truncation_psi": 0.7}, **recipe)
    return pieces.two_steps(config) if arg.endswith("_smoke") else config
