"""metalr: differentiate through optimization.

    L = metalr.Unrolled(loss, optax.sgd, params, steps=50)  # the loss after 50 steps
    L(0.1), jax.grad(L)(0.1), jax.hessian(L)(0.1)           # a JAX function of the rate
    metalr.hypergradient(L, 0.1, metalr.Forward())          # by another engine
    metalr.learn(L, 0.01, outer_optimizer=optax.adam(0.01), steps=100)

Your loss is `loss(params, hyper, batch) -> scalar`, your optimizer a function from
`hyper` to an optax transformation. All are pytrees.

- What is unrolled: `Unrolled` (a loss and an optimizer), `Rollout` (any step);
  `per_step`, `guard`.
- How it is differentiated: `hypergradient`, `hypergradient_and_run`, by the engines
  `Forward`, `Reverse`, `Mixed`, `Reversible`, `Truncated`, `Implicit`,
  `EvolutionStrategies`, `PersistentES`.
- What is done with it: `learn` (`Newton` for one number), `windows`, `online`,
  `reparametrized`, `metalr.tasks.Mean`; `metalr.bilevel` (single-loop solvers).
- Whether to believe it: `check_hypergrad`, `diagnose`.
- What it costs: `metalr.profiling.memory`, `metalr.profiling.plan`.
- What is known without running it: `metalr.theory`, `metalr.convexity.check`,
  `metalr.bias.limit`, `metalr.graph`.
- What is trained: `metalr.problems`, `metalr.convnet`.

Where to look: `help(metalr.NAME)` says what it computes, its formula, its memory in T,
its errors, with an example. `help(metalr.guides)` lists the guides: which engine,
recipes, your own model, limits.
"""

from . import (
    bias as bias,
    bilevel as bilevel,
    convexity as convexity,
    convnet as convnet,
    graph as graph,
    guides as guides,
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
