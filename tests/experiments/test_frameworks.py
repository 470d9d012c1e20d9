"""Models of flax, equinox and haiku against the same model as plain functions."""

import importlib

import pytest

from experiments import frameworks
from experiments._command.config import ConfigError
from experiments._frameworks import problem

TINY = frameworks.Config(steps=3, examples=16, batch=4, outer_steps=1, hidden=3)
EXACT = [name for name in frameworks.RECIPES if name != "flax_nnx_as_shipped"]


def record(name):
    pytest.importorskip(frameworks.RECIPES[name].package)
    (found,) = frameworks.run(TINY.model_copy(update={"frameworks": (name,)}))
    return found


@pytest.mark.parametrize("name", EXACT)
def test_a_model_learns_as_its_plain_functions_do(name):
    found = record(name)
    apart = {k: v for k, v in found.items() if k.endswith("_difference")}
    assert len(apart) == 5
    assert found["cost_ratio"] > 0.0
    assert found["statements"] > found["statements_by_hand"] / 4
    assert max(apart.values()) < 1e-6, apart
    assert found["learned_rate"] != TINY.rate
    assert set(frameworks.figures([found])) == {"frameworks"}


def test_the_batch_norm_of_nnx_stops_a_gradient():
    # Should flax leave it out one day, the recipe's own layer can go.
    found = record("flax_nnx_as_shipped")
    assert found["value_difference"] < 1e-12
    assert found["params_difference"] < 1e-12
    assert found["rate_difference"] > 1e-3
    assert "0 models" in frameworks.headline([found])


def test_a_framework_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"haiku needs dm-haiku.*metalr\[models\]"):
        list(frameworks.run(TINY.model_copy(update={"frameworks": ("haiku",)})))


def test_more_examples_than_there_are_is_a_wrong_config():
    with pytest.raises(ConfigError, match="only 1797"):
        problem.digits(2000, "float64")
