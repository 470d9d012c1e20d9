"""Memory and time of a hypergradient against the horizon; planning within a limit."""

from .growth import (
    Growth as Growth,
    fit_exponent as fit_exponent,
    growth as growth,
    growth_rows as growth_rows,
)
from .measure import (
    Memory as Memory,
    Program as Program,
    Timing as Timing,
    compiled as compiled,
    memory as memory,
    timing as timing,
)
from .plan import Plan as Plan, parse_bytes as parse_bytes, plan as plan
