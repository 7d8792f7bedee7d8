"""Text control of the diffusion autoencoder (FFHQ 256) by CLIP: the paper's experiment of Fig. 4c.

python main.py --config=configs/diffae_text.py:baby --workdir=runs/diffae_baby

With `baby_smoke`, two steps. The checkpoints are not shipped: a missing one is answered with the file, where it is
published, and the command that converts it. Not run with the published checkpoints here.
Recipe: experiment clip_a_baby_ffhq256_diffae of the official repository. It trains with 5 steps of either sampler and
makes pictures with 1000 of latents, though its config says 100, and 100 of pictures.
"""

from configs import pieces
from promptgen_jax import checks

EXPERIMENTS = {"baby": ("a photo of a baby", 500.0)}
GENERATOR = {"name": "diffae_ffhq256", "latent_only": True, "latent_steps": 5, "image_steps": 5}
PICTURES = {"latent_steps": 1000, "image_steps": 100}


def get_config(arg: str = "baby"):
    name = (arg or "baby").removesuffix("_smoke")
    checks.check_known("configs/diffae_text.py", name, EXPERIMENTS)
    text, weight = EXPERIMENTS[name]
    about = f"Diffusion autoencoder (FFHQ 256) under the CLIP energy of “{text}” (Eq. 3)."
    recipe = {"batch_size": 2, "accumulation": 4}
    config = pieces.text_experiment(text, weight, GENERATOR, about, pictures=PICTURES, **recipe)
    if arg.endswith("_smoke"):
        config.evaluation.pictures = {"latent_steps": 5, "image_steps": 5}
        return pieces.two_steps(config)
    return config
