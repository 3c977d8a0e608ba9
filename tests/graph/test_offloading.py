"""Models whose weights are moved while they run are pruned as they are, and what comes back is moved alike."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from saved_nets import tiny_unet
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputsError
from fxprune.graph.offloading import at_rest, offloading

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm, self.last = nn.BatchNorm1d(16), nn.Linear(16, 2)
        self.third.weight = self.second.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        out: Tensor = self.last(self.norm(self.third(h)))
        return out


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().mean()


def whole(net: nn.Module, folder: Path) -> None:
    accelerate.cpu_offload_with_hook(net, "cpu")


def each(net: nn.Module, folder: Path) -> None:
    accelerate.cpu_offload(net, "cpu", offload_buffers=True)


def disk(net: nn.Module, folder: Path) -> None:
    accelerate.disk_offload(net, str(folder / "weights"), "cpu")


def groups(net: nn.Module, folder: Path) -> None:
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(net, torch.device("cpu"), offload_type="leaf_level")


WAYS: dict[str, Any] = {"whole": whole, "each": each, "disk": disk, "groups": groups}
GIVEN: dict[str, Any] = {"example_inputs": X, "data": [X], "loss": loss, "progress": False}


def made() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.mark.parametrize("way", WAYS)
def test_a_model_is_pruned_as_it_is_and_moved_as_before(way: str, tmp_path: Path) -> None:
    plain, net = made(), made()
    if way == "disk":  # accelerate writes a shared weight twice
        plain.third.weight = nn.Parameter(plain.second.weight.detach().clone())
    want = fxprune.prune(plain, "taylor", 0.4, **GIVEN)
    WAYS[way](net, tmp_path)
    before, kind = net(X), offloading(net).kind
    small = fxprune.prune(net, "taylor", 0.4, **GIVEN)
    assert fxprune.report(small).plan == fxprune.report(want).plan
    assert offloading(small).kind == offloading(net).kind == kind == {"disk": "each"}.get(way, way)
    assert torch.equal(small(X), want(X))
    assert torch.equal(net(X), before)
    graph = fxprune.trace(net, X)
    assert all(c.ok for c in fxprune.verify(net, small, graph, fxprune.report(small).plan))
    scores = fxprune.score(graph, net, "magnitude")
    assert scores == fxprune.score(fxprune.trace(plain, X), plain, "magnitude")


@pytest.mark.parametrize("way", ["whole", "each"])
def test_in_place_the_new_weights_are_moved(way: str, tmp_path: Path) -> None:
    net, want = made(), fxprune.prune(made(), "magnitude", 0.4, example_inputs=X, progress=False)
    WAYS[way](net, tmp_path)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=X, inplace=True, progress=False)
    assert small is net
    assert offloading(net).kind == way
    assert torch.equal(net(X), want(X))


def test_at_rest_shared_weights_are_one_and_an_error_leaves_all_as_it_was(tmp_path: Path) -> None:
    net = made()
    each(net, tmp_path)
    with at_rest(net):
        assert net.second.weight is net.third.weight
        assert not any(p.is_meta for p in net.parameters())
    with contextlib.suppress(RuntimeError), at_rest(net):
        raise RuntimeError
    assert all(p.is_meta for p in net.parameters())
    assert torch.equal(net(X), made()(X))


def test_a_saved_model_has_its_weights(tmp_path: Path) -> None:
    net = made()
    each(net, tmp_path)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=X, progress=False)
    again = fxprune.load(fxprune.save(small, tmp_path / "small"), model=made())
    assert torch.equal(again(X), small(X))


def test_training_is_refused_by_name(tmp_path: Path) -> None:
    net = made()
    whole(net, tmp_path)
    with pytest.raises(InputsError, match=r"remove_all_hooks"):
        fxprune.prune(net, "magnitude", 0.4, steps=2, **GIVEN)
    with pytest.raises(InputsError, match=r"remove_hook_from_module"):
        fxprune.Pruner(net, steps=2, example_inputs=X, loss=loss)


def test_a_pipeline_draws_its_own_data_and_its_parts_take_turns_again() -> None:
    import diffusers

    torch.manual_seed(0)
    unet = tiny_unet()
    plain = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    want = fxprune.prune(plain, "taylor", 0.4, samples=2, progress=False)
    plain.enable_model_cpu_offload(device="cpu")
    small = fxprune.prune(plain, "taylor", 0.4, samples=2, progress=False)
    assert fxprune.report(small).plan == fxprune.report(want).plan
    assert offloading(small.unet).kind == offloading(unet).kind == "whole"
    assert [hook.model for hook in small._all_hooks] == [small.unet]
