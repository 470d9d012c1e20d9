"""What is trained, built from arrays."""

from . import network as network, regression as regression
from .influence import influence_balancing as influence_balancing
from .network import classifier as classifier
from .regression import least_squares as least_squares
