"""Equal numbers of every kind, by one class control a cell: the protocol of Table 2 on the shipped face generator.

python main.py --config=configs/face_table2.py --workdir=runs/face_table2

Cells of gender presentation, of smiles, and of both: eight trainings on the bare generator, then as many samples of
each cell, judged together by the controlling classifiers and by two others.

Measured on one CPU core shared with other work, not timed alone; 1,024 samples,
KL to uniform in nats of the generator and of equal numbers: gender 0.068 and 0.0046, smile 0.172 and 0.0021, both
together 0.250 and 0.0056, by the controlling classifiers; by the two others 0.320 and 0.105, 0.271 and 0.030, 0.592 and
0.176.
"""

from configs import pieces

GENDER = {
    "female": pieces.classifier("faceapi_age_gender", "gender", "female", weight=10.0, mirror=True),
    "male": pieces.classifier("faceapi_age_gender", "gender", "male", weight=10.0, mirror=True),
}
SMILE = {
    "happy": pieces.classifier("faceapi_expression", "expression", "happy", weight=3.0, mirror=True),
    "not_happy": pieces.classifier("faceapi_expression", "expression", "not happy", weight=3.0, mirror=True),
}
CELLS = {
    "gender": {name: {name: control} for name, control in GENDER.items()},
    "smile": {name: {name: control} for name, control in SMILE.items()},
    "gender and smile": {f"{g}_{s}": {g: GENDER[g], s: SMILE[s]} for g in GENDER for s in SMILE},
}
# by the controls' classifiers, and by others
IS_FEMALE = (("faceapi_age_gender", "gender", "female"), ("faceres", "gender", "female"))
IS_HAPPY = (("faceapi_expression", "expression", "happy"), ("emotion", "emotion", "happy"))
JUDGES = {
    "gender": tuple((question,) for question in IS_FEMALE),
    "smile": tuple((question,) for question in IS_HAPPY),
    "gender and smile": tuple(zip(IS_FEMALE, IS_HAPPY, strict=True)),
}


def get_config(arg: str = ""):
    config = pieces.base(
        "Equal numbers of each",
        "Balanced samples without a moment constraint: one class control a cell, and as many samples of each. The "
        "classifiers see presentation in a picture, not what people are.",
    )
    stages = {name: controls for cells in CELLS.values() for name, controls in cells.items()}
    for name, controls in stages.items():
        summary = f"{' and '.join(controls).replace('_', ' ')}, on the bare generator."
        config.stages[name] = pieces.stage(summary, controls, on="generator", num_steps=150, learning_rate=2e-3)
    config.order = tuple(stages)
    config.mixtures = {title: {"stages": tuple(cells), "judges": JUDGES[title]} for title, cells in CELLS.items()}
    config.evaluation.update({"num_samples": 1024})
    config.evaluation.judges = {}
    return pieces.variant(config, arg)
