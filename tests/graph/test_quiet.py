"""Tracing says nothing of torch's insides, and hides nothing of the model's; what cannot be traced is named."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3)


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if x.mean() > 0:
            h = self.b(h).relu()
        return self.c(h)


class Talking(Net):
    """Warns, logs and prints, as users' code does."""

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("scores are not calibrated", stacklevel=1)
        print("a line on stderr", file=sys.stderr)
        logging.getLogger("net").warning("a line in the log")
        return self.c(self.b(self.a(x).relu()).relu())


class Listed(Net):
    """Tests lengths in a set (Lumina2), and keeps a table made while it runs."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.a(x).relu()
        lengths = mask.sum(1).tolist()
        if len(set(lengths)) > 1:
            h = h * 2
        return self.c(self.b(h))


class Viewed(Net):
    """Fills a table through `.data` while it runs (CogVideoX at another size than its own)."""

    def forward(self, x: Tensor) -> Tensor:
        table = torch.from_numpy(np.arange(3, dtype="float32"))
        wide = table.new_zeros(2, 3)
        wide.data[:, 1:].copy_(table[1:])
        return self.c(self.b(self.a(x).relu())) + wide


def pruned(model: Any, *inputs: Any, **options: Any) -> Any:
    return fxprune.prune(model, "magnitude", 0.4, example_inputs=inputs, progress=False, **options)


def test_a_data_dependent_branch_prints_no_graph(capfd: pytest.CaptureFixture[str]) -> None:
    small = pruned(Branching(), torch.ones(2, 8))
    assert small.a.out_features < 32
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert not logging.getLogger("torch.fx").disabled


def test_what_the_model_says_is_heard(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.warns(UserWarning, match="not calibrated"):
        fxprune.trace(Talking(), torch.ones(2, 8))
    assert "a line on stderr" in capsys.readouterr().err
    assert "a line in the log" in caplog.text


def test_values_in_a_set_and_tables_filled_while_it_runs() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    assert pruned(Listed(), torch.randn(2, 8), mask).a.out_features < 32
    small, x = pruned(Viewed(), torch.randn(2, 8)), torch.randn(2, 8)
    assert fxprune.report(small).forward == "module"
    assert small.a.out_features < 32
    assert small(x).shape == (2, 3)


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def exported() -> Any:
    return torch.export.export(sequential().eval(), (torch.randn(2, 8),))


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(sequential().eval(), torch.randn(2, 8))


def distributed() -> Any:
    """The wrapper without its processes: what is looked at is its class."""
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = sequential()
    return wrapped


NO_MODULES: list[tuple[Callable[[], Any], str]] = [
    (distributed, r"DistributedDataParallel: prune model\.module"),
    (scripted, "TorchScript, whose code is fixed: prune the module that it was made from"),
    (lambda: exported().module(), "has no eval mode .*: prune the module that it was exported from"),
    (exported, "ExportedProgram is neither an nn.Module nor a pipeline"),
]


@pytest.mark.parametrize(("make", "message"), NO_MODULES)
def test_what_stands_in_place_of_a_module(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(fxprune.InputsError, match=message):
        pruned(make(), torch.randn(2, 8))


def test_random_needs_no_values_and_a_proof_does() -> None:
    with torch.device("meta"):
        model, x = sequential(), torch.randn(2, 8)
    options: dict[str, Any] = {"example_inputs": x, "progress": False}
    small = fxprune.prune(model, "random", 0.4, verify=False, **options)
    assert small[0].weight.is_meta
    assert small[0].out_features < 32
    with pytest.raises(fxprune.VerifyError, match=r"nothing can be compared: .* on the meta device"):
        fxprune.prune(model, "random", 0.4, **options)
    with pytest.raises(fxprune.InputsError, match="load the weights first"):
        fxprune.prune(model, "magnitude", 0.4, verify=False, **options)
