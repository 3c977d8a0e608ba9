"""`shape="stock"` on nets of our own: which configs are found, which are refused, and how near the budget they come."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from stock_nets import TOKENS, Encoder, Located, Shifted
from torch import nn

import fxprune


def encoder(**keywords: Any) -> nn.Module:
    torch.manual_seed(0)
    return Encoder(**keywords).eval()


def pruned(net: nn.Module, ratio: float, **options: Any) -> nn.Module:
    given: dict[str, Any] = {"shape": functools.partial(type(net)), "example_inputs": TOKENS, "progress": False}
    small: nn.Module = fxprune.prune(net, "magnitude", ratio, **{**given, **options})
    return small


def entries(small: nn.Module) -> dict[str, tuple[float, float]]:
    return dict(fxprune.report(small).plan.config)


def again(small: nn.Module) -> nn.Module:
    """The class called anew with the entries of the plan, and the weights loaded strictly."""
    made: nn.Module = type(small)(**{k: v for k, (_, v) in entries(small).items()}).eval()
    made.load_state_dict(small.state_dict(), strict=True)
    return made


@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_the_class_makes_what_is_left(ratio: float) -> None:
    net = encoder()
    small = pruned(net, ratio)
    total = sum(p.numel() for p in net.parameters())
    gone = 1 - sum(p.numel() for p in small.parameters()) / total
    assert type(small) is Encoder
    assert gone == pytest.approx(fxprune.report(small).plan.achieved, abs=1e-9)
    assert gone == pytest.approx(ratio, abs=0.04)
    assert torch.equal(again(small)(TOKENS), small(TOKENS))
    assert all(check.ok for check in fxprune.report(small).checks)


def test_layers_of_a_tie_choose_their_own_channels() -> None:
    removed = fxprune.report(pruned(encoder(), 0.4)).plan.removed
    inner = {name: gone for name, gone in removed.items() if ".up." in name}
    assert len(inner) == 3
    assert len({len(gone) for gone in inner.values()}) == 1
    assert len(set(inner.values())) == 3


def test_whole_heads_go_with_the_width() -> None:
    small = pruned(encoder(layers=1, ratio=0.25), 0.4, shape=functools.partial(Encoder, layers=1, ratio=0.25))
    width, heads = (entries(small)[name] for name in ("width", "heads"))
    assert width[1] / width[0] == heads[1] / heads[0] < 1


def test_a_factor_reaches_any_width() -> None:
    small = pruned(encoder(), 0.25, ignore="embed")
    assert set(entries(small)) == {"ratio"}
    assert fxprune.report(small).plan.achieved == pytest.approx(0.25, abs=0.005)


def test_what_the_constructor_cannot_be_given_is_told() -> None:
    with pytest.raises(fxprune.BudgetError) as told:
        pruned(encoder(layers=1), 0.9, ignore="embed", shape=functools.partial(Encoder, layers=1))
    message = str(told.value)
    assert "ratio" in message
    assert "classes: head.weight[0] becomes 4 of 5, which is held" in message
    assert "nearest=True" in message
    assert told.value.reachable is not None
    assert 0.4 < told.value.reachable < 0.9


def test_nearest_takes_what_there_is() -> None:
    net = encoder(layers=1)
    small = pruned(net, 0.9, ignore="embed", nearest=True, shape=functools.partial(Encoder, layers=1))
    assert 0.4 < fxprune.report(small).plan.achieved < 0.86
    assert fxprune.report(small).plan.ratio == 0.9


def test_matching_shapes_are_not_enough() -> None:
    torch.manual_seed(0)
    with pytest.raises(fxprune.BudgetError, match="hidden: the shapes fit, but masked = dense"):
        pruned(Shifted().eval(), 0.4)


def test_a_table_that_is_computed_anew_says_which_channels_stay() -> None:
    torch.manual_seed(0)
    net = Located().eval()
    small = pruned(net, 0.5, nearest=True, ignore="head")
    assert entries(small) == {"width": (32, 16)}
    assert fxprune.report(small).plan.removed["embed.weight:0"] == tuple(range(1, 32, 2))
    assert torch.equal(again(small)(TOKENS), small(TOKENS))


def test_whole_layers_are_an_entry() -> None:
    net = encoder()
    with torch.no_grad():  # the one in the middle is worth the least
        for p in net.layers[1].parameters():  # type: ignore[index,union-attr]
            p.mul_(0.01)
    small = pruned(net, 0.33, granularity="block")
    assert entries(small) == {"layers": (3, 2)}
    assert torch.equal(small.layers[1].up.weight, net.layers[2].up.weight)  # type: ignore[index,union-attr]
    assert torch.equal(again(small)(TOKENS), small(TOKENS))
    assert fxprune.report(small).plan.achieved == pytest.approx(0.33, abs=0.04)


def test_layers_and_widths_together() -> None:
    small = pruned(encoder(layers=4), 0.6, granularity="both", shape=functools.partial(Encoder, layers=4))
    assert entries(small)["layers"] == (4, 3)
    assert len(entries(small)) > 1
    assert fxprune.report(small).plan.achieved == pytest.approx(0.6, abs=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": {"embed": 0.5}}, "ratios= by name has no place with a stock shape"),
        ({"round_to": "auto"}, "pass a number, such as round_to=8"),
        ({"shape": functools.partial(Encoder, width=64)}, "does not make this Encoder: embed.bias is of shape"),
        ({"shape": functools.partial(Encoder, depth=2)}, "is no call of"),
        ({"shape": "loose"}, '"free", "stock", or the constructor'),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(fxprune.FxPruneError, match=message):
        pruned(encoder(), 0.4, **options)


def test_plans_of_a_graph_alone_say_where_to_go() -> None:
    graph = fxprune.trace(encoder(), TOKENS)
    with pytest.raises(fxprune.BudgetError, match=r"fxprune.prune\(model, shape=...\)"):
        fxprune.plan(graph, fxprune.score(graph, encoder(), "magnitude"), 0.4, limits=fxprune.Limits(shape="stock"))


def test_a_class_is_recalled_from_the_module() -> None:
    small = pruned(encoder(width=48, heads=6, layers=2), 0.4, shape="stock")
    assert set(entries(small)) <= {"width", "heads", "ratio"}
    assert small(TOKENS).shape == (2, 5)


def test_widths_are_multiples_where_that_is_asked() -> None:
    small = pruned(encoder(), 0.4, round_to=8, ignore="embed")
    assert small.layers[0].up.out_features % 8 == 0  # type: ignore[index,union-attr,operator]


def test_the_plan_keeps_the_entries() -> None:
    plan = fxprune.report(pruned(encoder(), 0.4)).plan
    assert fxprune.Plan.from_json(plan.to_json()) == plan
    assert "ratio = " in repr(plan)


def test_in_place() -> None:
    net = encoder()
    small = pruned(net, 0.4, inplace=True)
    assert small is net
    assert torch.equal(again(small)(TOKENS), net(TOKENS))


def test_a_plan_is_replayed_on_other_weights() -> None:
    net, other = encoder(), encoder()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    plan = fxprune.report(pruned(net, 0.4)).plan
    small = fxprune.apply(other, plan, example_inputs=TOKENS)
    assert entries(small) == entries(pruned(net, 0.4))
    assert torch.equal(again(small)(TOKENS), small(TOKENS))
    assert not torch.equal(small(TOKENS), fxprune.apply(net, plan, example_inputs=TOKENS)(TOKENS))


def test_a_plan_of_layers_is_replayed() -> None:
    net = encoder()
    plan = fxprune.report(small := pruned(net, 0.33, granularity="block")).plan
    assert torch.equal(fxprune.apply(net, plan, example_inputs=TOKENS)(TOKENS), small(TOKENS))


def test_a_pruner_has_no_constructor() -> None:
    with pytest.raises(fxprune.InputsError, match="cuts first and trains after"):
        fxprune.Pruner(encoder(), steps=3, example_inputs=TOKENS, limits=fxprune.Limits(shape="stock"))


def test_it_is_saved_like_any_other(tmp_path: Path) -> None:
    small = pruned(encoder(), 0.4)
    fxprune.save(small, tmp_path / "small")
    made = type(small)(**{k: v for k, (_, v) in entries(small).items()})
    loaded = fxprune.load(tmp_path / "small", model=made)
    assert torch.equal(loaded(TOKENS), small(TOKENS))
    assert fxprune.report(loaded).steps == fxprune.report(small).steps != ()


def test_a_stock_shape_is_pruned_again() -> None:
    once = pruned(encoder(), 0.3)
    call = functools.partial(Encoder, **{k: v for k, (_, v) in entries(once).items()})
    twice = pruned(once, 0.3, shape=call)
    assert 1 - sum(p.numel() for p in twice.parameters()) / sum(
        p.numel() for p in encoder().parameters()
    ) == pytest.approx(0.51, abs=0.06)
    assert len(fxprune.report(twice).earlier) == 1
