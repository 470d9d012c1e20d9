"""What is trained, built from arrays."""

from . import network as network, regression as regression
from .dynamics import (
    dynamics as dynamics,
    influence_balancing as influence_balancing,
)
from .network import classifier as classifier
from .regression import least_squares as least_squares
