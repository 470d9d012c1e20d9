"""Is L_T convex in the learning rate? Proofs, witnesses, or an honest "undecided"."""

from ._check import check as check
from ._report import Report as Report
