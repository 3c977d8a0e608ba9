"""H g through backward passes that somebody wrote: never silently wrong, and the report says how it was computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import fxprune
from fxprune.criteria.gradflow import GradFlow
from fxprune.errors import CriterionError
from fxprune.scoring.score import Scores

X, Y = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
NEAR = 1e-2


class Recompute(torch.autograd.Function):
    """The gradient checkpointing of guided-diffusion and its relatives: `autograd.grad` within backward."""

    @staticmethod
    def forward(ctx: Any, run: Any, tidy: bool, n: int, *args: Tensor) -> Any:
        ctx.run, ctx.tidy, ctx.inputs, ctx.params = run, tidy, list(args[:n]), list(args[n:])
        with torch.no_grad():
            return run(*ctx.inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        inputs = [x.detach().requires_grad_(True) for x in ctx.inputs]
        with torch.enable_grad():
            out = ctx.run(*inputs)
        found = torch.autograd.grad(out, inputs + ctx.params, grads, allow_unused=True)
        if ctx.tidy:
            del ctx.inputs, ctx.params
        return (None, None, None, *found)


class Kept(torch.autograd.Function):
    """tanh whose result is kept as an attribute: a derivative, but one that autograd does not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.y = x.tanh()
        return ctx.y.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * (1 - ctx.y.square())


class Once(torch.autograd.Function):
    """tanh that says itself that it is differentiable once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


class Proper(torch.autograd.Function):
    """tanh whose backward pass can be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * (1 - y.square())


class Net(nn.Module):
    """One function in several hands; `how` says whose."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.c, self.d = nn.Linear(8, 32), nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 8)

    def block(self, x: Tensor) -> Tensor:
        inner = {"attribute": Kept, "once": Once, "proper": Proper}.get(self.how)
        return self.c(torch.tanh(self.b(x)) if inner is None else inner.apply(self.b(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        if self.how in ("grad within", "grad within, tidy"):
            parameters = [*self.b.parameters(), *self.c.parameters()]
            x = Recompute.apply(self.block, "tidy" in self.how, 1, x, *parameters)
        elif self.how in ("reentrant", "not reentrant"):
            x = checkpoint(self.block, x, use_reentrant=self.how == "reentrant")
        else:
            x = self.block(x)
        return self.d(torch.tanh(x))


HAND = ("grad within", "grad within, tidy", "attribute", "once", "reentrant")


def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (net(batch[0]) - batch[1]).square().mean()


def scored(how: str, criterion: Any) -> Scores:
    torch.manual_seed(0)
    net = Net("plain")
    graph = fxprune.trace(net, X)
    net.how = how
    return fxprune.score(graph, net, criterion, data=[(X, Y)], loss=loss)


@pytest.fixture(scope="module")
def truth() -> dict[str, Scores]:
    """By the second backward pass of the plain network."""
    return {name: scored("plain", c) for name, c in (("sum", GradFlow("exact")), ("literal", literal("exact")))}


def literal(method: Any) -> GradFlow:
    return GradFlow(method, form="literal")


def error(got: Scores, want: Scores) -> float:
    return max(float(np.abs(got.values[k] - v).max() / np.abs(v).max()) for k, v in want.values.items())


@pytest.mark.parametrize("how", ["plain", "not reentrant", "proper", *HAND])
def test_auto_is_right_whoever_wrote_the_backward_pass(how: str, truth: dict[str, Scores]) -> None:
    assert error(scored(how, GradFlow()), truth["sum"]) < NEAR
    assert error(scored(how, literal("auto")), truth["literal"]) < NEAR


@pytest.mark.parametrize("how", ["plain", "proper", *HAND])
def test_a_finite_difference_is_close_to_the_exact_way(how: str, truth: dict[str, Scores]) -> None:
    assert error(scored(how, literal("finite_difference")), truth["literal"]) < NEAR


@pytest.mark.parametrize("how", HAND)
def test_what_cannot_be_differentiated_twice_is_refused_where_that_was_asked(how: str) -> None:
    with pytest.raises(CriterionError, match="method='finite_difference'"):
        scored(how, GradFlow("exact"))


def test_a_backward_pass_is_judged_by_its_derivative_not_by_its_name(truth: dict[str, Scores]) -> None:
    assert error(scored("proper", literal("exact")), truth["literal"]) < 1e-5
    with pytest.raises(CriterionError, match=r"Kept is an autograd.Function .* is off by \d+%"):
        scored("attribute", GradFlow("exact"))


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("plain", "H g by a second backward pass"),
        (
            "attribute",
            "by a finite difference of gradients: Kept is an autograd.Function with a backward pass of its own",
        ),
        ("once", "by a finite difference of gradients: Once is marked @once_differentiable"),
        ("reentrant", "by a finite difference of gradients: a checkpoint is reentrant"),
    ],
)
def test_scores_and_report_tell_how(how: str, told: str) -> None:
    assert any(told in note for note in scored(how, GradFlow()).notes)
    torch.manual_seed(0)
    net = Net("plain")
    net.how = how

    def trained(model: Any, batch: Any) -> Tensor:
        return loss(model, batch)

    small = fxprune.prune(net, ratio=0.3, example_inputs=X, data=[(X, Y)], loss=trained, verify=False, progress=False)
    assert any(told in note for note in fxprune.report(small).scoring)
    assert told in repr(fxprune.report(small))


def test_half_precision_is_not_taken_on_trust() -> None:
    torch.manual_seed(0)
    net = Net("plain").bfloat16()
    graph = fxprune.trace(net, X.bfloat16())
    net.how = "proper"
    with pytest.raises(CriterionError, match=r"cannot be checked because .* use model.float\(\)"):
        fxprune.score(graph, net, GradFlow("exact"), data=[(X.bfloat16(), Y.bfloat16())], loss=loss)
