"""Convolution, the size of a network, and what its units see."""

from .bank import Filter as Filter, filters as filters
from .geometry import shapes as shapes
from .images import (
    convolution_matrix as convolution_matrix,
    convolve2d as convolve2d,
    correlate2d as correlate2d,
    recover_image as recover_image,
)
from .layers import (
    Conv as Conv,
    Dense as Dense,
    GlobalPool as GlobalPool,
    Layer as Layer,
    Pool as Pool,
)
from .network import apply as apply, init as init
from .receptive import (
    Field as Field,
    fields as fields,
    receptive_field as receptive_field,
)
from .table import Row as Row, Table as Table, size_table as size_table
