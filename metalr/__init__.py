"""metalr: differentiate through optimization.

`Unrolled` is the loss after T optimizer steps as a JAX function of hyperparameters;
`hypergradient` its derivative by an engine of your choice; `learn` the outer loop;
`theory` the closed forms it can be held against.
"""

from . import (
    bias as bias,
    bilevel as bilevel,
    convexity as convexity,
    convnet as convnet,
    graph as graph,
    hypergrad as hypergrad,
    problems as problems,
    profiling as profiling,
    tasks as tasks,
    theory as theory,
)
from .checking import (
    Check as Check,
    HypergradientError as HypergradientError,
    check_hypergrad as check_hypergrad,
)
from .diagnosis import Diagnosis as Diagnosis, diagnose as diagnose
from .hypergrad import (
    EvolutionStrategies as EvolutionStrategies,
    Forward as Forward,
    HyperGradient as HyperGradient,
    Implicit as Implicit,
    ImplicitHyperGradient as ImplicitHyperGradient,
    Mixed as Mixed,
    PersistentES as PersistentES,
    Reverse as Reverse,
    Reversible as Reversible,
    ReversibleHyperGradient as ReversibleHyperGradient,
    SmoothedHyperGradient as SmoothedHyperGradient,
    Truncated as Truncated,
    hypergradient as hypergradient,
    hypergradient_and_run as hypergradient_and_run,
)
from .optimizers.guard import guard as guard
from .optimizers.per_step import per_step as per_step
from .outer.learn import (
    Learned as Learned,
    LearnState as LearnState,
    learn as learn,
)
from .outer.newton import Newton as Newton
from .outer.online import Online as Online, online as online
from .outer.reparametrized import reparametrized as reparametrized
from .outer.windows import Windows as Windows, windows as windows
from .runs.rollout import Rollout as Rollout
from .runs.run import Run as Run
from .runs.unrolled import Unrolled as Unrolled
