"""Optimizer state of another shape than its parameter is cut along the axes they share, or begins anew, and is told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

X = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.Flatten(), nn.Linear(64, 2)
    )


def step(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


class Sums(torch.optim.Optimizer):
    """State whose shape is what `of` makes of the gradient's."""

    def __init__(self, params: Any, of: Callable[[Tensor], Any]) -> None:
        super().__init__(params, {})
        self.of = of

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("sum", self.of(p.grad.square()))


def carried(model: nn.Module, optimizer: Any) -> tuple[nn.Module, fxprune.Plan, list[str]]:
    step(model, optimizer)
    graph = fxprune.trace(model, X)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.5)
    small = fxprune.rewrite(model, graph, plan).model
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fxprune.Carry(model, small, graph, plan).optimizer(optimizer)
    return small, plan, [str(w.message) for w in told]


SUMS: dict[str, Callable[[Tensor], Any]] = {
    "rows": lambda g: g.sum(tuple(range(1, g.dim()))),
    "rows kept": lambda g: g.sum(tuple(range(1, g.dim())), keepdim=True),
    "columns": lambda g: g.sum(0) if g.dim() > 1 else g,
    "columns kept": lambda g: g.sum(0, keepdim=True) if g.dim() > 1 else g,
    "one number": lambda g: g.sum(),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_cut_by_axis(name: str) -> None:
    model = net()
    optimizer = Sums(model.parameters(), SUMS[name])
    small, plan, told = carried(model, optimizer)
    assert plan.removed
    assert not told
    kept = [c for c in range(12) if c not in plan.removed["0.weight:0"]]
    dense = SUMS[name](model[0].weight.grad.square())  # type: ignore[union-attr,operator]
    rows = dense.index_select(0, torch.tensor(kept)) if name.startswith("rows") else dense
    assert torch.equal(optimizer.state[small[0].weight]["sum"], rows)  # type: ignore[index,union-attr]
    for p in small.parameters():
        assert optimizer.state[p]["sum"].shape == SUMS[name](p).shape


@pytest.mark.parametrize("make", [torch.optim.Adafactor, torch.optim.Adam, torch.optim.Adagrad])
def test_optimizers_of_torch_go_on(make: Any) -> None:
    model = net()
    optimizer = make(model.parameters())
    small, _, told = carried(model, optimizer)
    before = [p.clone() for p in small.parameters()]
    step(small, optimizer)
    assert not told
    assert all(bool((a != b).any()) for a, b in zip(before, small.parameters(), strict=True))


UNCLEAR: dict[str, Callable[[Tensor], Any]] = {
    "blocks": lambda g: g.flatten()[::7].clone(),
    "a list": lambda g: [g.sum(), g],
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_state_that_does_not_show_its_axes_begins_anew_and_it_is_said(name: str) -> None:
    model = net()
    optimizer = Sums(model.parameters(), UNCLEAR[name])
    small, _, told = carried(model, optimizer)
    assert len(told) == 1
    assert told[0].startswith("Sums begins anew for ")
    assert small[0].weight not in optimizer.state  # type: ignore[index]
    assert small[4].bias in optimizer.state  # type: ignore[index] # nothing of it went
    step(small, optimizer)


def test_rows_and_columns_of_a_square_are_not_guessed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2))
    small, plan, told = carried(model, optimizer := Sums(model.parameters(), SUMS["rows"]))
    assert {"1.weight:0", "2.weight:0"} <= set(plan.removed)
    assert len(told) == 1
    assert small[2].weight not in optimizer.state  # type: ignore[index]
    assert optimizer.state[small[1].weight]["sum"].shape == small[1].weight.shape[:1]  # type: ignore[index,union-attr]


def test_one_state_for_all_parameters_is_refused() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    graph = fxprune.trace(model, X)
    plan = fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.5)
    small = fxprune.rewrite(model, graph, plan).model
    with pytest.raises(fxprune.InputsError, match="LBFGS keeps one state for several parameters"):
        fxprune.Carry(model, small, graph, plan).optimizer(optimizer)
    assert optimizer.param_groups[0]["params"][0] is model[0].weight


def test_an_optimizer_of_a_model_pruned_in_place_is_told_of() -> None:
    model, other = net(), net()
    optimizer, bystander = torch.optim.SGD(model.parameters(), 0.1), torch.optim.SGD(other.parameters(), 0.1)
    with pytest.warns(UserWarning, match=r"SGD holds 6 parameters that pruning in place has replaced") as told:
        fxprune.prune(model, "magnitude", 0.4, example_inputs=X, inplace=True, progress=False)
    assert len(told) == 1
    assert optimizer is not bystander
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxprune.prune(other, "magnitude", 0.4, example_inputs=X, progress=False)  # the other is left as it is
