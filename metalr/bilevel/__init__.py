r"""Single-loop stochastic bilevel solvers, as pairs of pure functions.

$$\min_x h(x) = f(z^*(x), x), \qquad z^*(x) = \arg\min_z g(z, x)$$

with g (the inner function) and f (the outer one) means over minibatches. An inner run
is never finished: inner parameters, adjoint and hyperparameters move together, so that
an update costs a few minibatches. `Unrolled` and its engines run the inner problem
anew in each outer step; see `experiments/bilevel.py` for the two side by side.
"""

from .amigo import AmIGO as AmIGO
from .f2sa import F2SA as F2SA
from .oracle import Oracle as Oracle, oracle as oracle
from .saba import SABA as SABA
from .soba import SOBA as SOBA
from .solver import Solver as Solver, State as State
from .stocbio import StocBiO as StocBiO
