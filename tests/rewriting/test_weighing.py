"""What samples and places count in a correction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.criteria.obs import Obs
from fxprune.graph.analysis import analyse
from fxprune.graph.modules import as_inputs
from fxprune.rewriting import correction, weighing
from fxprune.rewriting.compensation import compensated
from fxprune.scoring import outlook


class FirstToken(nn.Module):
    """Tokens of two features, of which the first one's are read."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.out = nn.Linear(2, 2, bias=False), nn.Linear(2, 1)
        with torch.no_grad():
            self.inside.weight.copy_(torch.eye(2))
            self.out.weight.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inside(x))[:, 0]  # type: ignore[no-any-return]


def fitted(net: nn.Module, x: Tensor, obs: Obs, notes: list[str] | None = None, loss: Any = None) -> float:
    """What the second feature's loss makes of the first one's weight."""
    graph = analyse(net, as_inputs(x[:2]))
    empty = fxprune.plan(graph, {g.name: np.arange(float(len(g))) for g in graph.groups}, 0.0)
    plan = replace(empty, removed={g.name: (1,) for g in graph.groups})
    fixed = compensated(graph, net, plan, obs, data=list(x.split(50)), loss=loss, notes=notes)
    return float(fixed.get_parameter("out.weight").detach()[0, 0])


@pytest.fixture
def tokens() -> tuple[FirstToken, Tensor]:
    """In a first token the second feature is as the first, in the eight others its opposite."""
    torch.manual_seed(0)
    a = torch.randn(200, 9)
    return FirstToken().eval(), torch.stack([a, a * torch.tensor([1.0, *[-1.0] * 8])], 2)


@pytest.mark.parametrize("most", [weighing.MOST, 2])
def test_what_the_answer_hangs_on_is_fitted(
    most: int, tokens: tuple[FirstToken, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correction, "MOST", most)  # side by side, and a pass for every layer
    alike, counting = (fitted(*tokens, Obs(damping=1e-6, weigh=weigh)) for weigh in (False, True))
    assert alike == pytest.approx(2 / 9, abs=0.1)
    assert counting == pytest.approx(2 * 9.1 / 9.9, abs=0.1)  # a first token counts 9 + 0.1, the others 0.1


def test_few_samples_count_alike(tokens: tuple[FirstToken, Tensor]) -> None:
    net, x = tokens
    few = x[:1, :3]  # three tokens, three columns
    assert fitted(net, few, Obs()) == fitted(net, few, Obs(weigh=False))


def test_as_much_is_even_as_leaves_a_sample_for_each_column() -> None:
    d = [{"w": torch.zeros(400)}, {"w": torch.cat([torch.ones(4), torch.zeros(396)])}]  # four of 800
    (a, b) = weighing._relative(d, {"w": 50}, torch.device("cpu"))
    w = torch.cat([a["w"], b["w"]]).double().square()
    assert float(w.sum().square() / w.square().sum()) == pytest.approx(50, rel=1e-4)
    even = weighing._relative([{"w": torch.ones(800)}], {"w": 50}, torch.device("cpu"))[0]["w"]
    torch.testing.assert_close(even, torch.full((800,), (1 + weighing.EVEN) ** 0.5))


def test_what_one_batch_does_not_have_counts_alike() -> None:
    d = [{"w": torch.rand(40), "v": torch.rand(40)}, {"w": torch.rand(40)}]
    found = weighing._relative(d, {"w": 5, "v": 5}, torch.device("cpu"))
    assert [set(own) for own in found] == [{"w"}, {"w"}]


def test_a_loss_that_does_not_ask_the_model_is_told_of(tokens: tuple[FirstToken, Tensor]) -> None:
    notes: list[str] = []

    def inner(model: Any, batch: Tensor) -> Tensor:
        return model.forward(batch).square().mean()  # type: ignore[no-any-return]

    found = fitted(*tokens, Obs(), notes, inner)
    assert any("count alike" in note and "makes nothing of what the model gives" in note for note in notes)
    assert found == fitted(*tokens, Obs(weigh=False), loss=inner)


@pytest.mark.parametrize("where", ["outlook", "weighing"])
def test_without_the_memory_all_count_alike(
    where: str, tokens: tuple[FirstToken, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "outlook":
        monkeypatch.setattr(outlook, "free_memory", lambda device: 1.0)
    else:
        monkeypatch.setattr(weighing, "MOST", 3)  # of four batches
    notes: list[str] = []
    found = fitted(*tokens, Obs(), notes)
    assert any("count alike" in note for note in notes)
    assert found == fitted(*tokens, Obs(weigh=False))


@pytest.mark.parametrize(
    "last",
    [nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Conv1d(4, 2, 2, stride=2)],
    ids=lambda m: type(m).__name__,
)
def test_what_a_layer_reads_at_other_places_than_it_gives_counts_alike(last: nn.Module) -> None:
    torch.manual_seed(0)
    image = isinstance(last, nn.ConvTranspose2d)
    net = nn.Sequential(nn.Conv2d(2, 4, 1) if image else nn.Conv1d(2, 4, 1), last).eval()
    x = torch.randn(8, 2, 32, 32) if image else torch.randn(8, 2, 2048)  # more places on both sides than looked at
    graph = analyse(net, as_inputs(x[:2]))
    empty = fxprune.plan(graph, {g.name: np.arange(float(len(g))) for g in graph.groups}, 0.0)
    plan = replace(empty, removed={g.name: (1,) for g in graph.groups})
    weighed, alike = (compensated(graph, net, plan, Obs(weigh=w), data=[x]) for w in (True, False))
    assert not torch.equal(weighed.get_parameter("1.weight"), net.get_parameter("1.weight"))
    assert torch.equal(weighed.get_parameter("1.weight"), alike.get_parameter("1.weight"))
