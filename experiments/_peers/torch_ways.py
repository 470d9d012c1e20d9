"""The ways in PyTorch, each written as its user would write it; see `jax_ways`."""

# PyTorch and its peers are in the extra `bench`, which the checks do without:
# pyright: reportMissingImports=false

from typing import Any, NamedTuple

import torch

from experiments._peers.work import Case, Work


class Setting(NamedTuple):
    """A case in PyTorch."""

    make: Any  # () -> a module with the initial parameters
    inputs: Any
    targets: Any
    adam: bool
    steps: int
    per_step: bool

    def loss(self, model: Any) -> Any:
        """Mean squared error."""
        return torch.mean((model(self.inputs) - self.targets) ** 2)


class _Model(torch.nn.Module):
    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        for name, leaf in params.items():
            setattr(self, name, torch.nn.Parameter(torch.tensor(leaf)))


class _Regression(_Model):
    def forward(self, inputs: Any) -> Any:
        return inputs @ self.w


class _Mlp(_Model):
    def forward(self, inputs: Any) -> Any:
        hidden = torch.tanh(inputs @ self.w1 + self.b1)
        return hidden @ self.w2 + self.b2


def setting(case: Case, work: Work) -> Setting:
    """The model with the arrays of `work`."""
    model = _Regression if case.problem == "regression" else _Mlp
    return Setting(
        make=lambda: model(work.params),
        inputs=torch.tensor(work.inputs),
        targets=torch.tensor(work.targets),
        adam=case.optimizer == "adam",
        steps=case.steps,
        per_step=case.learned == "per_step",
    )


def by_higher(this: Setting) -> Any:
    import higher

    def hypergradient(hyper):
        hyper = hyper.requires_grad_()
        model = this.make()
        optimizer = torch.optim.Adam if this.adam else torch.optim.SGD
        optimizer = optimizer(model.parameters(), lr=1.0)
        with higher.innerloop_ctx(model, optimizer) as (inner, differentiable):
            for step in range(this.steps):
                rate = hyper[step] if this.per_step else hyper
                differentiable.step(this.loss(inner), override={"lr": [rate]})
            value = this.loss(inner)
            (grad,) = torch.autograd.grad(value, hyper)
        return value, grad

    return hypergradient


def by_torchopt(this: Setting) -> Any:
    import torchopt

    def hypergradient(hyper):
        hyper = hyper.requires_grad_()
        model = this.make()
        rate = (lambda count: hyper[count.long()]) if this.per_step else hyper
        optimizer = torchopt.MetaAdam if this.adam else torchopt.MetaSGD
        optimizer = optimizer(model, lr=rate)
        for _ in range(this.steps):
            optimizer.step(this.loss(model))
        value = this.loss(model)
        (grad,) = torch.autograd.grad(value, hyper)
        return value, grad

    return hypergradient
