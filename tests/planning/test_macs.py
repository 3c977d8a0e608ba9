"""Multiply-accumulates, against what torch itself counts while the model runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

import fxprune
from fxprune.planning.costs.macs import _contractions

Example = tuple[nn.Module, Tensor]


def counted(model: nn.Module, x: Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
        model(x)
    return counter.get_total_flops() / 2


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16))
        self.layer = kind(16, 24, **options)  # type: ignore[arg-type]
        self.last = nn.Linear(options.get("proj_size", 24) * (2 if options.get("bidirectional") else 1), 3)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.first(x).relu())[0])  # type: ignore[no-any-return]


class Steps(nn.Module):
    """A cell in a loop; an LSTM's state is a pair."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.first, self.cell, self.last = nn.Linear(6, 16), kind(16, 24), nn.Linear(24, 3)  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 24)
        c = h
        for t in range(x.shape[1]):
            out = self.cell(self.first(x[:, t]).relu(), (h, c) if isinstance(self.cell, nn.LSTMCell) else h)
            h, c = out if isinstance(out, tuple) else (out, c)
        return self.last(h)  # type: ignore[no-any-return]


class Einsum(nn.Module):
    """Products written with letters: two operands, dots, three operands, and no result."""

    def __init__(self, equations: tuple[str, str]) -> None:
        super().__init__()
        self.equations = equations
        self.w, self.v = nn.Parameter(torch.randn(32, 6)), nn.Parameter(torch.randn(4, 32))

    def forward(self, x: Tensor) -> Tensor:
        inner, outer = self.equations
        if inner == "three":
            return torch.einsum("oh,hd,bnd->bno", self.v, self.w, x)
        return torch.einsum(outer, self.v, torch.einsum(inner, self.w, x).relu())


class Products(nn.Module):
    """The functional relatives of linear."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.w, self.b, self.v = (nn.Parameter(torch.randn(s)) for s in ((6, 32), (32,), (32, 4)))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        if self.how == "addmm":
            h = torch.addmm(self.b, rows, self.w)
        elif self.how == "tensordot":
            h = torch.tensordot(rows, self.w, dims=1)
        else:
            h = torch.baddbmm(self.b, x, self.w[None].expand(x.shape[0], -1, -1)).flatten(0, 1)
        return h.relu() @ self.v


NETS = {
    "lstm": Recurrent(nn.LSTM),
    "two layers both ways": Recurrent(nn.LSTM, num_layers=2, bidirectional=True, batch_first=True),
    "projected": Recurrent(nn.LSTM, proj_size=8),
    "gru": Recurrent(nn.GRU, batch_first=True, bias=False),
    "rnn": Recurrent(nn.RNN, nonlinearity="relu"),
    "lstm cell": Steps(nn.LSTMCell),
    "gru cell": Steps(nn.GRUCell),
    "rnn cell": Steps(nn.RNNCell),
    "einsum": Einsum(("hd,bnd->bnh", "oh,bnh->bno")),
    "einsum with dots": Einsum(("hd,...d->...h", "oh,...h->...o")),
    "einsum without result": Einsum(("hd,bnd->bnh", "oh,bnh")),
    "einsum of three": Einsum(("three", "")),
    "addmm": Products("addmm"),
    "tensordot": Products("tensordot"),
    "baddbmm": Products("baddbmm"),
}


@pytest.mark.parametrize("name", NETS)
def test_a_plan_counts_what_torch_counts_before_and_after(name: str) -> None:
    net, x = NETS[name].eval(), torch.randn(2, 5, 6)
    small = fxprune.prune(net, "magnitude", 0.2, of="macs", example_inputs=x, progress=False)
    before, after = fxprune.report(small).plan.costs["macs"]
    assert before == counted(net, x) > 0
    assert after == counted(small, x) < before


def test_an_outer_product_sums_over_nothing() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x).relu()
            return self.b(torch.einsum("bi,i->bi", h, h[0]))  # type: ignore[no-any-return]

    net, x = Outer(), torch.randn(3, 6)
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=x, progress=False)
    assert fxprune.report(small).plan.costs["macs"] == (counted(net, x), counted(small, x))


# ---- what nobody has told -------------------------------------------------------------------------------------------


@torch.library.custom_op("fxprune_tests::opaque", mutates_args=())
def opaque(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@opaque.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[-1]))


@torch.library.custom_op("fxprune_tests::told", mutates_args=())
def told(x: Tensor, w: Tensor) -> Tensor:
    return x @ w


@told.register_fake
def _(x: Tensor, w: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], w.shape[-1]))


class Custom(nn.Module):
    def __init__(self, product: str) -> None:
        super().__init__()
        self.a, self.b, self.product = nn.Linear(6, 32), nn.Linear(32, 8), product
        self.w = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        op = getattr(torch.ops.fxprune_tests, self.product)
        return op(self.b(self.a(x).relu()), self.w.float())  # type: ignore[no-any-return]


def test_an_op_that_nobody_has_told_is_named_and_no_budget_of_macs() -> None:
    net, x = Custom("opaque"), torch.randn(3, 6)
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=x, progress=False)
    assert "not counted in macs: fxprune_tests::opaque" in repr(fxprune.report(small))
    again = fxprune.Plan.from_json(fxprune.report(small).plan.to_json())
    assert again.uncounted == ("fxprune_tests::opaque",)
    with pytest.raises(fxprune.BudgetError, match=r"how much fxprune_tests::opaque .*register_flop_formula"):
        fxprune.prune(net, "magnitude", 0.3, of="macs", example_inputs=x, progress=False)


def test_an_op_with_a_flop_formula_is_counted_by_it() -> None:
    packet = torch.ops.fxprune_tests.told
    register_flop_formula(packet)(lambda x, w, *_, out_shape=None, **__: 2 * x[0] * x[1] * w[1])
    net, x = Custom("told"), torch.randn(3, 6)
    small = fxprune.prune(net, "magnitude", 0.3, of="macs", example_inputs=x, progress=False)
    plan = fxprune.report(small).plan
    assert plan.costs["macs"] == (counted(net, x), counted(small, x))
    assert plan.uncounted == ()
    assert plan.costs["macs"][0] == 3 * (6 * 32 + 32 * 8 + 8 * 4)


def test_a_model_without_macs_has_no_budget_of_them() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))

        def forward(self, x: Tensor) -> Tensor:
            return (x.sum(-1, keepdim=True) * self.w * self.v).mean(-1)

    with pytest.raises(fxprune.BudgetError, match="of='macs': this Scaled has none to remove"):
        fxprune.prune(Scaled(), "magnitude", 0.3, of="macs", example_inputs=torch.randn(3, 6), progress=False)


def test_products_without_a_path_go_from_left_to_right() -> None:
    """ab, bc, cd, de, ef -> af: the product so far meets the next term, never two later ones."""
    terms, path = [set("ab"), set("bc"), set("cd"), set("de"), set("ef")], (3, 4, 2, 3, 1, 2, 0, 1)
    forth, back = ("abc", "acd", "ade", "aef"), ("def", "cdf", "bcf", "abf")
    assert list(_contractions(list(terms), set("af"), None)) == [set(x) for x in forth]
    assert list(_contractions(list(terms), set("af"), path)) == [set(x) for x in back]
