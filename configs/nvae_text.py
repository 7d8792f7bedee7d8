"""Text control of NVAE (FFHQ 256) by CLIP: the paper's experiment of Fig. 4b.

python main.py --config=configs/nvae_text.py:baby --workdir=runs/nvae_baby

With `baby_smoke`, two steps. The checkpoints are not shipped: a missing one is answered with the file, where it is
published, and the command that converts it. Not run with the published checkpoints here.
The official repository has no config of it. Text: arXiv 2209.06970, Fig. 4; recipe and weight: StyleGAN2's baby; first
group, temperature and rule of the latents: NVAETruncWrapper of ChenWu98/unified-generative-zoo.
"""

from configs import pieces
from promptgen_jax import checks

EXPERIMENTS = {"baby": ("a photo of a baby", 600.0)}
GENERATOR = {"name": "nvae_ffhq256", "control_groups": 1, "temperature": 0.8, "rule": "truncated", "output": "mean"}


def get_config(arg: str = "baby"):
    name = (arg or "baby").removesuffix("_smoke")
    checks.check_known("configs/nvae_text.py", name, EXPERIMENTS)
    text, weight = EXPERIMENTS[name]
    about = f"NVAE (FFHQ 256), its first group of latents, under the CLIP energy of “{text}” (Eq. 3)."
    config = pieces.text_experiment(text, weight, GENERATOR, about, batch_size=2, accumulation=4)
    return pieces.two_steps(config) if arg.endswith("_smoke") else config
