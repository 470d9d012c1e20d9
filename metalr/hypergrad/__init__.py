"""Engines: how a hypergradient is computed, one a file, all with one signature."""

from ._engine import Engine as Engine, HyperGradient as HyperGradient
from ._smoothing import SmoothedHyperGradient as SmoothedHyperGradient
from .evolution import EvolutionStrategies as EvolutionStrategies
from .forward import Forward as Forward
from .hypergradient import (
    PrecisionWarning as PrecisionWarning,
    hypergradient as hypergradient,
    hypergradient_and_run as hypergradient_and_run,
)
from .implicit import (
    Implicit as Implicit,
    ImplicitHyperGradient as ImplicitHyperGradient,
)
from .mixed import Mixed as Mixed
from .persistent import PersistentES as PersistentES
from .reverse import Reverse as Reverse
from .reversible import (
    Reversible as Reversible,
    ReversibleHyperGradient as ReversibleHyperGradient,
)
from .truncated import Truncated as Truncated
