"""Head meshes under control: FLAME with a wide mouth (appendix E).

python main.py --config=configs/flame_wide_mouth.py --workdir=runs/wide_mouth

FLAME is not shipped: register at flame.is.tue.mpg.de, and convert your file with convert/flame_to_flax.py. `:smoke`, a
few steps. Not run with the published file here.
"""

from configs import pieces

CORNERS_OF_MOUTH = (48, 54)  # of the 68 landmarks


def get_config(arg: str = ""):
    config = pieces.base(
        "Heads with a wide mouth",
        "Shape and expression coefficients of FLAME, standard normal a priori, so that the corners of the mouth are 65 "
        "millimetres apart.",
    )
    config.generator = {"name": "flame"}
    control = {"kind": "lengths", "pairs": (CORNERS_OF_MOUTH,), "lengths": (0.065,), "sigma": 0.002}
    config.stages.mouth = pieces.stage("Corners of the mouth 65 mm apart.", {"mouth": control}, num_steps=300)
    config.evaluation.judges = {}
    config.order = ("mouth",)
    return pieces.variant(config, arg)
