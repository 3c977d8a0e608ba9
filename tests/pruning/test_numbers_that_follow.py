"""Numbers made from a width that no weight can undo (EDM2's magnitude-preserving layers) follow it, and are told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune


def unit(x: Tensor, dim: Any = None) -> Tensor:
    """Divided by its root mean square, as EDM2 writes it."""
    dim = list(range(1, x.ndim)) if dim is None else dim
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.add(1e-4, norm, alpha=np.sqrt(norm.numel() / x.numel()))


class Preserving(nn.Module):
    """A linear layer whose weight is normalised by its own fan-in; in training it stays so."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.weight.copy_(unit(self.weight))
        w = unit(self.weight)
        return x @ (w / np.sqrt(w[0].numel())).t()


def joined(a: Tensor, b: Tensor) -> Tensor:
    """Side by side, both with the same share in the magnitude."""
    n, m = a.shape[1], b.shape[1]
    c = np.sqrt((n + m) / 2)
    return torch.cat([c / np.sqrt(n) * a, c / np.sqrt(m) * b], 1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = Preserving(6, 24), Preserving(24, 20), Preserving(44, 24), Preserving(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = unit(F.silu(self.a(x)) / 0.6, dim=1)
        return self.d(F.silu(self.c(joined(x, F.silu(self.b(x))))))


class Gate(nn.Module):
    """A mean over channels written out: a sum divided by their number; and the root of it as an exponent."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).sigmoid()
        return self.b(x * (x.sum(-1, keepdim=True) / x.shape[-1]).pow(1 / x.shape[-1] ** 0.5))


@pytest.fixture(params=[Net, Gate])
def net(request: pytest.FixtureRequest) -> nn.Module:
    made: nn.Module = request.param()
    return made.eval()


def test_what_no_weight_undoes_follows(net: nn.Module, tmp_path: Path) -> None:
    x, was = torch.randn(5, 6), {n: p.clone() for n, p in net.state_dict().items()}
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False, strict=True)
    told = fxprune.report(small)
    assert told.plan.achieved == pytest.approx(0.4, abs=0.06)
    assert any("the number" in line and "was" in line for line in told.reduced)
    assert fxprune.verify(net, small, fxprune.trace(net, x), told.plan)
    assert all(torch.equal(p, was[n]) for n, p in net.state_dict().items())  # trained in the proof, and put back
    again = fxprune.load(fxprune.save(small, tmp_path / "m"), model=net)
    assert torch.equal(again(x), small(x))
    plan = fxprune.Plan.from_json(told.plan.to_json())
    assert torch.equal(fxprune.apply(net, plan, example_inputs=x)(x), small(x))
    small.train()(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())


def test_the_norm_is_that_of_what_stays() -> None:
    """By hand: the pruned layer is a magnitude-preserving layer of its new width."""
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(5, 6)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    rows = small.c.weight / (small.c.weight.square().mean(1, keepdim=True).sqrt() + 1e-4)
    assert torch.allclose((rows.square().sum(1) / rows.shape[1]).sqrt(), torch.ones(len(rows)), atol=1e-3)
    y = torch.randn(5, rows.shape[1])
    assert torch.allclose(small.c(y), y @ rows.t() / rows.shape[1] ** 0.5, atol=1e-5)


def test_without_proof_it_is_the_same() -> None:
    net, x = Gate().eval(), torch.randn(5, 6)
    made = [fxprune.prune(net, "magnitude", 0.3, example_inputs=x, progress=False, verify=v) for v in (True, False)]
    assert torch.equal(made[0](x), made[1](x))
    assert fxprune.report(made[0]).reduced == fxprune.report(made[1]).reduced


def test_a_wrong_number_is_no_following() -> None:
    """What the proof lets follow is the model's own number at the new width, and no other."""
    net, x = Gate().eval(), torch.randn(5, 6)
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=x, progress=False)
    plan, graph = fxprune.report(small).plan, fxprune.trace(net, x)
    with torch.no_grad():
        small.get_parameter("b.weight").mul_(1.1)
    with pytest.raises(fxprune.VerifyError):
        fxprune.verify(net, small, graph, plan)


def test_exact_norms_keep_such_widths() -> None:
    net, x = Gate().eval(), torch.randn(5, 6)
    with pytest.raises(fxprune.RewriteError, match="masked = dense"):
        fxprune.prune(net, "magnitude", 0.3, example_inputs=x, progress=False, exact_norms=True, strict=True)
