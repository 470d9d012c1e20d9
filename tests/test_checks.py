"""What the user passes is checked the same way everywhere."""

import numpy as np
import pytest

from metalr._checks import int_at_least, positive_int


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)], ids=repr)
def test_an_int_of_any_kind_is_a_python_int(value):
    assert type(int_at_least(value, "steps", 3)) is int
    assert positive_int(value, "chunk") == 3


@pytest.mark.parametrize(
    "value", [True, np.True_, 3.0, np.float64(3), "3", 1, None], ids=repr
)
def test_what_is_no_int_or_too_small_is_refused(value):
    with pytest.raises(ValueError, match=r"steps = .* must be an int ≥ 2: it counts"):
        int_at_least(value, "steps", 2, note=": it counts updates")


def test_an_option_may_be_none_but_not_zero():
    assert positive_int(None, "chunk") is None
    with pytest.raises(ValueError, match="chunk = 0 must be an int ≥ 1, or None"):
        positive_int(0, "chunk")
