"""Class control: everybody smiles, trained longer than in the quick start.

python main.py --config=configs/face_smile.py --workdir=runs/face_smile
"""

from configs import pieces


def get_config(arg: str = ""):
    config = pieces.base(
        "Everybody smiles",
        "Classifier control, -2.3 log P(happy), the mean over the image and its mirror image.",
    )
    smile = {"smile": pieces.classifier("faceapi_expression", "expression", "happy", weight=2.3, mirror=True)}
    config.stages.smile = pieces.stage(
        "The classifier energy -2.3 log P(happy) of the image and its mirror image.",
        smile,
        num_steps=1200,
        batch_size=64,
        learning_rate=2e-3,
    )
    config.stages.smile.flow.hidden_dim = 128
    config.evaluation.judges.faceres = ()
    config.order = ("smile",)
    return pieces.shrink(config) if arg == "smoke" else config
