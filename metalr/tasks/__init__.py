"""Many inner problems at once: means over tasks, on one device or several.

Meta-learning learns hyperparameters for a distribution of problems. The problems are
one run whose arrays lead with an axis of tasks (`Mean.of`, `stack`), and the objective
is the mean of theirs (`Mean`); what all tasks share is kept once. With a `mesh` each
device runs its own share of them.
"""

from ._alike import stack as stack
from ._places import AXIS as AXIS
from .each import Each as Each, TaskHyperGradient as TaskHyperGradient
from .mean import Mean as Mean
