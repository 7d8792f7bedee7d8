"""Head pose of StyleGAN2 by a conditional flow, with DECA and IR-SE50: the paper's pose experiment (section 4.3).

python main.py --config=configs/stylegan2_pose.py --workdir=runs/pose
python main.py --mode=evaluate --workdir=runs/pose      # Table 3: psi 1, conditions drawn evenly
python main.py --mode=sample --workdir=runs/pose        # psi 0.7, each face in nine poses, as in Fig. 7

For the FID of Table 3 add --config.evaluation.num_samples=50000 and, with clean-fid's statistics of FFHQ,
--config.evaluation.real.inception=ffhq_clean_trainval70k_1024.npz. With `:smoke`, two steps. The checkpoints are not
shipped: a missing one is answered with the file, where it is published, and the command that converts it. Not run with
the published checkpoints here.
Recipe: experiments inverse_graphics_pose_ffhq and inverse_graphics_pose_ffhq_test_fid of the official repository.
Conditions are drawn anew for every noise vector; the official code draws 1,024 once.
"""

from configs import pieces

RANGES = {"nod": (-20.0, 20.0), "turn": (-20.0, 20.0), "roll": (0.0, 0.0)}


def get_config(arg: str = ""):
    config = pieces.base(
        "Any head pose, the same person",
        "StyleGAN2 under the inverse graphics energy of DECA's head pose (Eq. 4) and the identity energy of IR-SE50 "
        "(Eq. 12), by a flow that takes the pose as a condition.",
    )
    config.generator = {"name": "stylegan2_ffhq", "truncation_psi": 1.0, "noise": "const"}
    controls = {
        "pose": pieces.rotation(200.0, canonical=(0.3, 0.0, 0.0), network="deca"),
        "identity": pieces.identity(10.0, network="irse50"),
    }
    config.stages.pose = pieces.paper_stage(
        "200 times the squared angle to the pose asked, 10 times the identity energy.",
        controls,
        condition=RANGES,
        num_steps=2560,
        batch_size=4,
    )
    config.order = ("pose",)
    pictures = {"truncation_psi": 0.7}
    config.evaluation.update({"pictures": pictures, "num_samples": 1024, "num_shown": 7})
    config.evaluation.judges = {}
    return pieces.variant(config, arg, pieces.two_steps)
