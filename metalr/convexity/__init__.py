"""Is L_T convex in the learning rate? Proofs, witnesses, or an honest "undecided"."""

from ._by_spectrum import GradientDescent as GradientDescent, recognize as recognize
from ._check import check as check
from ._report import Report as Report
from ._taylor import exact_slope as exact_slope
