"""A linear layer in the place of blocks: the best one, where it can live, proven, counted, saved, and pruned again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from depthnets import made
from torch import Tensor, nn

import fxprune
from fxprune.graph.modules import as_inputs
from fxprune.pruning.intervals import chains, channel_axis, least_squares
from fxprune.pruning.replacing import map_cost
from fxprune.rewriting.fitted import Fitted
from fxprune.saving.header import HEADER

LEVELS = {"pre-norm": 0.5, "ada": 0.45, "u-shape": 0.4}


def total(model: nn.Module, batch: Any) -> Tensor:
    """A loss that only calls the model."""
    out: Tensor = model(*batch[0], **batch[1])
    return out.square().mean()


def prepared(name: str) -> tuple[nn.Module, dict[str, Any]]:
    net, inputs, _ = made(name)
    data = [as_inputs(inputs(3)) for _ in range(4)]  # not of the batch size of the example
    given = {"example_inputs": inputs(2), "data": data, "loss": total, "progress": False}
    return net.eval(), {"criterion": "magnitude", "granularity": "block", "replace": "linear", **given}


def maps(model: nn.Module) -> dict[str, Fitted]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Fitted)}


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def outputs(net: nn.Module, given: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [net(*args, **kwargs) for args, kwargs in given["data"]]


def off(net: nn.Module, small: nn.Module, given: dict[str, Any]) -> float:
    """How far the outputs are from those of the given model, on the data."""
    pairs = zip(outputs(small, given), outputs(net, given), strict=True)
    return sum(float((a - b).square().mean()) for a, b in pairs)


@pytest.mark.parametrize("name", LEVELS)
def test_the_model_is_proven_counted_and_nearer_than_without_the_maps(name: str) -> None:
    net, given = prepared(name)
    small = fxprune.prune(net, ratio=LEVELS[name], **given)
    report = fxprune.report(small)
    assert report.forward == "module"
    assert all(c.ok for c in report.checks)
    assert len(maps(small)) == len(report.fitted) > 0
    assert report.plan.cost("params") == count(small)
    assert report.plan.achieved == pytest.approx(1 - count(small) / count(net))
    without = fxprune.apply(net, report.plan, example_inputs=given["example_inputs"])
    assert not maps(without)
    assert off(net, small, given) < off(net, without, given)
    assert all(c.ok for c in fxprune.verify(net, small, fxprune.trace(net, given["example_inputs"]), report.plan))


def test_a_map_that_is_not_the_fitted_one_still_has_to_be_proven() -> None:
    """The proof is of the module's own forward: a map that reads something else than the stream is found out."""
    net, given = prepared("pre-norm")
    small = fxprune.prune(net, ratio=0.5, **given)
    graph, plan = fxprune.trace(net, given["example_inputs"]), fxprune.report(small).plan
    ((_, held),) = maps(small).items()
    own = held.fitted

    class Off(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return own(x.roll(1, 1))

    held.forward = lambda *args, **kw: super(Fitted, held).forward(*args, **kw) + Off()(args[0])  # type: ignore[method-assign]
    with pytest.raises(fxprune.VerifyError, match="masked = dense"):
        fxprune.verify(net, small, graph, plan)


def test_the_map_is_the_best_there_is() -> None:
    x = torch.randn(200, 6, dtype=torch.float64)
    weight, bias = torch.randn(6, 6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    found = least_squares(x, x @ weight.T + bias)
    assert torch.allclose(found.weight, weight, atol=0.02)
    assert torch.allclose(found.bias, bias, atol=0.02)
    flat = least_squares(torch.ones(50, 6, dtype=torch.float64), torch.full((50, 6), 3.0, dtype=torch.float64))
    assert torch.allclose(flat.weight @ torch.ones(6, dtype=torch.float64) + flat.bias, torch.full((6,), 3.0).double())


class Straight(nn.Module):
    """Four residual layers, the last two of which are linear already."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.bent = nn.ModuleList(nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12)) for _ in range(2))
        self.plain = nn.ModuleList(nn.Sequential(nn.Linear(12, 24), nn.Linear(24, 12)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in (*self.bent, *self.plain):
            x = x + layer(x)
        return self.head(x)


def straight() -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(1)
    net = Straight().eval()
    with torch.no_grad():
        for layer in net.bent:
            layer[0].weight.mul_(6)  # far from linear
    data = [torch.randn(40, 5) for _ in range(4)]
    given = {"example_inputs": data[0][:2], "data": data, "loss": lambda m, x: m(x).square().mean(), "progress": False}
    return net, {"criterion": "magnitude", "granularity": "block", "replace": "linear", **given}


def test_what_a_map_can_stand_for_goes_first_and_a_row_of_it_is_one_map() -> None:
    net, given = straight()
    small = fxprune.prune(net, ratio=0.45, **given)
    report = fxprune.report(small)
    assert report.plan.blocks == ("plain.0", "plain.1")
    assert len(maps(small)) == 1
    assert report.fitted[0].startswith("plain.0 to plain.1: a linear map at plain.0 stands for 2 blocks (100%")
    for x in given["data"]:
        assert torch.allclose(small(x), net(x), atol=0.05)
    assert [b.name for b in chains(fxprune.trace(net, given["example_inputs"]))[0]][:2] == ["bent.0", "bent.1"]


def test_width_goes_too_and_the_map_is_as_wide_as_the_stream_that_is_left() -> None:
    net, given = straight()
    small = fxprune.prune(net, ratio=0.5, **{**given, "granularity": "both"})
    report = fxprune.report(small)
    ((_, held),) = maps(small).items()
    stream = small.get_submodule("stem").out_features
    assert isinstance(stream, int)
    assert stream < 12
    assert isinstance(held.fitted, nn.Linear)
    assert held.fitted.weight.shape == (stream, stream)
    assert all(c.ok for c in report.checks)
    assert report.plan.cost("params") == count(small)


@pytest.mark.parametrize("build", [straight, lambda: prepared("u-shape")], ids=["tokens", "maps"])
def test_it_is_saved_loaded_and_pruned_again(build: Callable[[], Any], tmp_path: Path) -> None:
    net, given = build()
    small = fxprune.prune(net, ratio=0.4, **given)
    fxprune.save(small, tmp_path / "m")
    loaded = fxprune.load(tmp_path / "m", build()[0]).eval()
    args, kwargs = as_inputs(x := given["example_inputs"])
    assert torch.equal(loaded(*args, **kwargs), small(*args, **kwargs))
    assert maps(loaded).keys() == maps(small).keys()
    assert fxprune.report(loaded).fitted == fxprune.report(small).fitted
    again = fxprune.prune(loaded, "magnitude", 0.3, example_inputs=x, progress=False)
    assert all(c.ok for c in fxprune.report(again).checks)
    assert count(again) < count(loaded)
    fxprune.save(again, tmp_path / "again")
    third = fxprune.load(tmp_path / "again", build()[0]).eval()
    assert torch.equal(third(*args, **kwargs), again(*args, **kwargs))


def test_a_folder_whose_map_is_no_map_is_refused(tmp_path: Path) -> None:
    net, given = straight()
    fxprune.save(fxprune.prune(net, ratio=0.4, **given), tmp_path / "m")
    text = (tmp_path / "m" / HEADER).read_text()
    for old, new, told in (
        ('"key": 0', '"key": -7', "no argument's position"),
        ('"block": "', '"block": 7, "b": "', "str"),
    ):
        assert old in text
        (tmp_path / "m" / HEADER).write_text(text.replace(old, new))
        with pytest.raises(fxprune.SaveError):
            fxprune.load(tmp_path / "m", straight()[0])
        assert told


class Cast(nn.Module):
    """A norm that casts to the type that the stream has already: the cast is the stream."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Casting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.norms = nn.ModuleList(Cast(12) for _ in range(2))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 12)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        return self.head(x)


def test_a_norm_that_casts_goes_with_its_block() -> None:
    """As in Llama: the stream went on as the cast's result, which kept the norm, and its weight, in the model."""
    torch.manual_seed(0)
    net, x = Casting().eval(), torch.randn(4, 5)
    graph = fxprune.trace(net, x)
    assert graph.blocks[0].modules == ("mlps.0", "norms.0")
    given: dict[str, Any] = {"example_inputs": x, "data": [x], "loss": lambda m, b: m(b).mean(), "progress": False}
    small = fxprune.prune(net, "magnitude", 0.35, granularity="block", replace="linear", **given)
    assert all(c.ok for c in fxprune.report(small).checks)
    assert len(maps(small)) == 1
    narrow = fxprune.prune(net, "magnitude", 0.5, granularity="both", **given)
    assert all(c.ok for c in fxprune.report(narrow).checks)


def test_where_no_map_fits_it_says_so() -> None:
    net, given = prepared("tied")
    with pytest.raises(fxprune.BudgetError, match=r"with linear maps in place of blocks: .* make 0.0%"):
        fxprune.prune(net, ratio=0.3, **given)
    net, given = straight()
    for more, error, told in (
        ({"granularity": "channel"}, fxprune.BudgetError, 'pass granularity="block" or "both"'),
        ({"of": "latency"}, fxprune.BudgetError, "counts what the maps cost in params and macs"),
        ({"replace": "cubic"}, fxprune.InputsError, 'choose "linear"'),
        ({"steps": 20}, fxprune.InputsError, "train after it"),
        ({"loss": None}, fxprune.InputsError, "loss"),
        ({"loss": lambda m, b: torch.zeros(())}, fxprune.InputsError, "never calls the Straight"),
    ):
        with pytest.raises(error, match=told):
            fxprune.prune(net, ratio=0.4, **{**given, **more})


def test_a_map_costs_what_it_is_said_to() -> None:
    for build, axis in ((straight, 1), (lambda: prepared("u-shape"), 1)):
        net, given = build()
        graph = fxprune.trace(net, given["example_inputs"])
        block = graph.blocks[0]
        assert channel_axis(graph, block) == axis
        width = 12
        assert map_cost(graph, block, "params") == width * width + width
