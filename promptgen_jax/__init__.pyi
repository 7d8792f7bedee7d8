"""What is public: read by type checkers, and by `__init__.py`, which imports a name when it is asked for."""

from . import evaluation as evaluation
from .controls.function import FunctionControl as FunctionControl
from .draws import Draws as Draws
from .draws import Sampler as Sampler
from .ebm import LatentEBM as LatentEBM
from .editing.blend import blend as blend
from .editing.interpolate import interpolate as interpolate
from .editing.invert import Inversion as Inversion
from .editing.invert import invert as invert
from .flows.base import Flow as Flow
from .flows.base import init_flow as init_flow
from .flows.base import load_flow as load_flow
from .flows.conditions import Conditions as Conditions
from .flows.mixture import MixtureFlow as MixtureFlow
from .flows.sentences import Sentences as Sentences
from .generators.function import FunctionGenerator as FunctionGenerator
from .metrics._dials import DialCertificate as DialCertificate
from .metrics.certificate import Certificate as Certificate
from .metrics.certificate import certify as certify
from .metrics.dial import certify_dial as certify_dial
from .models.network import Network as Network
from .models.network import load_network as load_network
from .objectives import (
    FAB as FAB,
)
from .objectives import (
    CGMRelax as CGMRelax,
)
from .objectives import (
    ForwardKL as ForwardKL,
)
from .objectives import (
    Mixed as Mixed,
)
from .objectives import (
    Objective as Objective,
)
from .objectives import (
    PathGradient as PathGradient,
)
from .objectives import (
    ReverseKL as ReverseKL,
)
from .objectives import (
    ScoreFunction as ScoreFunction,
)
from .parts import load_control as load_control
from .parts import load_generator as load_generator
from .parts import load_sampler as load_sampler
from .prompt import Prompt as Prompt
from .runs.sampling import write_samples as write_samples
from .samplers._refine import refine as refine
from .training import TrainConfig as TrainConfig
from .training import fit as fit
from .training import fit_moments as fit_moments
from .training.moments import MomentFit as MomentFit
from .types import (
    Aim as Aim,
)
from .types import (
    Constraint as Constraint,
)
from .types import (
    Control as Control,
)
from .types import (
    Density as Density,
)
from .types import (
    Generator as Generator,
)
from .types import (
    Invertible as Invertible,
)
from .types import (
    Prior as Prior,
)
from .types import (
    Sample as Sample,
)
from .types import (
    Spec as Spec,
)

__version__: str
