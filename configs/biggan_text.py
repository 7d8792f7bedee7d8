"""Text control of BigGAN-deep 512 by CLIP: the paper's experiments, one word each after the colon.

python main.py --config=configs/biggan_text.py:robot --workdir=runs/robot

Known: robot, dog, ink_wash; with `_smoke` behind the word, two steps. Two flows are trained together, of the noise and
of the class embedding. The checkpoints are not shipped: a missing one is answered with the file, where it is published,
and the command that converts it. Not run with the published checkpoints here.
Recipe: experiments clip_*_biggan of the official repository, and its prior of the class embedding, "rms".
"""

from configs import pieces
from promptgen_jax import checks

EXPERIMENTS = {
    "robot": ("a painting of a melancholy robot", 10000.0),
    "dog": ("a photo of a glow and light dog", 5000.0),
    "ink_wash": ("an ink wash of a church near forest under moonlight", 2000.0),
}
RECIPE = {"batch_size": 4, "accumulation": 1, "num_steps": 3840}


def get_config(arg: str = "robot"):
    name = (arg or "robot").removesuffix("_smoke")
    checks.check_known("configs/biggan_text.py", name, EXPERIMENTS)
    text, weight = EXPERIMENTS[name]
    generator = {"name": "biggan_deep_512", "truncation": 0.4, "embedding_prior": "rms"}
    about = f"BigGAN-deep 512 under the CLIP energy of “{text}” (Eq. 3 and 11)."
    config = pieces.text_experiment(text, weight, generator, about, **RECIPE)
    return pieces.two_steps(config) if arg.endswith("_smoke") else config
