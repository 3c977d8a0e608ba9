"""Plans of channels that are named one by one, or that are zero already."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks

import fxprune
from fxprune import PlanError
from fxprune.planning.indices import zero_channels

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def convs(norm: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), norm or nn.Identity(), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(2)]
    net = nn.Sequential(*layers)
    net(X)
    return net.eval()


class Heads(nn.Module):
    """An attention of four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (m(x).view(*x.shape[:2], 4, 4).transpose(1, 2) for m in (self.q, self.k, self.v))
        h = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2))


def applied(net: nn.Module, plan: Any, x: Tensor = X) -> Any:
    return fxprune.apply(net, plan, example_inputs=x)


def test_exactly_these_go() -> None:
    net = convs()
    graph = fxprune.trace(net, X)
    plan = fxprune.Plan.removing(graph, {"0": torch.tensor([1, 6]), "3.weight": [0]})
    small = applied(net, plan)
    assert torch.equal(small[0].weight, net[0].weight[[0, 2, 3, 4, 5, 7]])
    assert torch.equal(small[3].weight, net[3].weight[1:][:, [0, 2, 3, 4, 5, 7]])
    assert plan.ratio == plan.achieved > 0
    assert plan.criterion == "by name"
    assert fxprune.Plan.from_json(plan.to_json()) == plan
    group = next(g.name for g in graph.groups if g.name.startswith("0."))
    assert fxprune.Plan.removing(graph, {group: [1, 6], "3": [0]}).removed == plan.removed


def test_heads_go_whole() -> None:
    net, x = Heads().eval(), torch.randn(1, 5, 16)
    graph = fxprune.trace(net, x)
    plan = fxprune.Plan.removing(graph, {"v": range(4, 8)})
    assert torch.equal(applied(net, plan, x).q.weight, net.q.weight[[*range(4), *range(8, 16)]])
    with pytest.raises(
        PlanError, match=r"channel 4 of 'v' goes with 5, 6, 7, and 6, 7 of these are not named: .*: \[1\]\}"
    ):
        fxprune.Plan.removing(graph, {"v": [4, 5]})


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"0": [8]}, r"'0' has 8 positions on axis 0 of 0.weight, so no channel 8"),
        ({"0": [-1]}, r"so no channel -1"),
        ({"nothing": [0]}, r"no tensor 'nothing'"),
        ({"5": [0]}, r"channel 0 of '5' cannot go: .*reaches the model's output"),
        ({"0": range(8)}, r"cannot go together: of '0.weight:0' 8 of 8 were named"),
    ],
)
def test_what_cannot_go_is_refused(removed: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        fxprune.Plan.removing(fxprune.trace(convs(), X), removed)


def test_group_norms() -> None:
    """Balanced removals leave a norm as it is; others regroup it, unless that is forbidden or impossible."""
    net = convs(nn.GroupNorm(4, 8))
    graph = fxprune.trace(net, X)
    assert not fxprune.Plan.removing(graph, {"0": [0, 2, 4, 6]}).regrouped
    assert fxprune.Plan.removing(graph, {"0": [0, 1, 2, 4]}).regrouped
    with pytest.raises(PlanError, match=r"cannot go together: of '0.weight:0' 4 of 8"):
        fxprune.Plan.removing(graph, {"0": [0, 1, 2, 4]}, exact_norms=True)
    some = fxprune.Plan.removing(graph, {"0": [0, 1, 2]}, exact_norms=True, nearest=True)
    assert some.removed == {"0.weight:0": (0, 1)}


@pytest.mark.parametrize("side", ["made", "read"])
def test_what_is_zero_goes_and_nothing_is_lost(side: str) -> None:
    net = convs()
    with torch.no_grad():
        if side == "made":
            net[0].weight[[2, 5]] = 0
            net[0].bias[[2, 5]] = 0
        else:
            net[3].weight[:, [2, 5]] = 0
    plan = fxprune.Plan.zeros(fxprune.trace(net, X), net)
    assert plan.removed["0.weight:0"] == (2, 5)
    small = applied(net, plan)
    assert small[0].out_channels == 6
    assert (small(X) - net(X)).abs().max() < 1e-6


def test_what_is_nearly_zero_is_asked_for() -> None:
    net = convs()
    graph = fxprune.trace(net, X)
    with pytest.raises(
        PlanError, match=r"no channel of this Sequential is zero; the nearest has no weight above 0\.\d+: pass"
    ):
        fxprune.Plan.zeros(graph, net)
    with torch.no_grad():
        net[0].weight[3] = 1e-4
    assert fxprune.Plan.zeros(graph, net, tolerance=1e-3, weights_only=True).removed == {"0.weight:0": (3,)}
    with pytest.raises(PlanError, match="no channel"):  # its bias counts
        zero_channels(graph, net, 1e-3, weights_only=False)
    with pytest.raises(PlanError, match="trace this model"):
        fxprune.Plan.zeros(graph, nn.Linear(2, 2))


def test_masks_of_torch() -> None:
    """As the page says: by name where a bias stays, or as zeros once they are made permanent."""
    net = convs()
    masks.ln_structured(net[0], "weight", amount=3, n=2, dim=0)
    mask = net[0].weight_mask
    masks.remove(net[0], "weight")
    gone = (mask.flatten(1).sum(1) == 0).nonzero().flatten()
    graph = fxprune.trace(net, X)
    plan = fxprune.Plan.removing(graph, {"0": gone})
    assert list(plan.removed.values()) == [tuple(gone.tolist())]
    assert fxprune.Plan.zeros(graph, net, weights_only=True).removed == plan.removed
