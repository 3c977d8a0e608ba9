"""The loss on the end of a trajectory: its gradient, its memory, and what criteria make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusion_nets import PIPELINES, model
from torch import Tensor, nn

import fxprune
from fxprune.adapters import trajectories as module

KINDS = ("ddpm", "sd1", "dit", "flux")


@pytest.fixture(params=KINDS)
def given(request: pytest.FixtureRequest) -> tuple[Any, nn.Module]:
    """A pipeline (a bare model, where that needs an autoencoder) and its denoiser."""
    net = model(request.param)
    made = PIPELINES.get(request.param)
    return (made.around(net) if made is not None else net), net


def gradients(net: nn.Module, data: list[Any], loss: Any) -> list[Tensor]:
    found = torch.autograd.grad(loss(net, data[0]), list(net.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.mark.filterwarnings("ignore:the text conditions of this")
def test_the_gradient_is_the_plain_one(given: tuple[Any, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without checkpoints the same; and no step of the sampler is left out."""
    pipeline, net = given
    data, loss = fxprune.trajectory_loss(pipeline, steps=3, samples=2)
    ours = gradients(net, data, loss)
    calls = []
    monkeypatch.setattr(module, "_again", lambda predict: lambda x, t: calls.append(float(t[0])) or predict(x, t))
    for a, b in zip(ours, gradients(net, data, loss), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert len(calls) == 3
    assert calls == sorted(calls, reverse=True)
    assert any(float(g.abs().max()) > 0 for g in ours)


def kept(net: nn.Module, steps: int) -> int:
    """Numbers that autograd keeps of a forward, beside the model's own."""
    data, loss = fxprune.trajectory_loss(net, steps=steps, samples=1)
    own = {p.untyped_storage().data_ptr() for p in (*net.parameters(), *net.buffers())}
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            seen[id(t)] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss(net, data[0])
    return sum(seen.values())


def test_memory_does_not_grow_with_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a few latents a step, where without checkpoints each step keeps all of the model's activations."""
    net = model("ddpm")
    latent = 3 * 16 * 16
    few, many = kept(net, 2), kept(net, 6)
    assert many - few <= 4 * 8 * latent
    monkeypatch.setattr(module, "_again", lambda predict: predict)
    assert kept(net, 6) - kept(net, 2) > 4 * 50 * latent


def test_the_value_is_that_of_targets_around_the_dense_end() -> None:
    """At the dense weights what is left is the noise of the targets; elsewhere it is more."""
    net = model("ddpm")
    data, loss = fxprune.trajectory_loss(net, steps=2, samples=6)
    assert [len(b["start"]) for b in data] == [4, 2]
    with torch.no_grad():
        dense = float(loss(net, data[0]))
        net.conv_out.bias.add_(1.0)
        assert dense == pytest.approx(1.0, abs=0.1)
        assert float(loss(net, data[0])) > dense + 0.05


def test_criteria_take_it_and_a_seed_gives_the_same() -> None:
    net = model("ddpm")
    graph = fxprune.trace(net)
    data, loss = fxprune.trajectory_loss(net, steps=2, samples=2, seed=3)
    again, other = (fxprune.trajectory_loss(net, steps=2, samples=2, seed=s)[0] for s in (3, 4))
    assert torch.equal(data[0]["target"], again[0]["target"])
    assert not torch.equal(data[0]["start"], other[0]["start"])
    for criterion in ("taylor", "gradflow"):
        scores = fxprune.score(graph, net, criterion, data=data, loss=loss)
        assert all((v > 0).any() for v in scores.values.values()), criterion
    small = fxprune.prune(net, "taylor", 0.3, data=data, loss=loss, progress=False)
    assert fxprune.report(small).checks[0].ok


def test_what_has_no_trajectory_is_told() -> None:
    with pytest.raises(fxprune.InputsError, match=r"trajectory_loss\(\) is for diffusion models, and this Linear"):
        fxprune.trajectory_loss(nn.Linear(2, 2))
    with pytest.raises(fxprune.InputsError, match="this AutoencoderTiny is none"):
        fxprune.trajectory_loss(model("tiny-vae"))
    net = model("ddpm")
    _, loss = fxprune.trajectory_loss(net, steps=1, samples=1)
    with pytest.raises(fxprune.InputsError, match="holds start, conditions, target; pass the data of trajectory_loss"):
        loss(net, torch.zeros(1, 3, 16, 16))
