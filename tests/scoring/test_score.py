"""From saliency to channels, the model left as it was, and what is said when something is missing or wrong."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.errors import CriterionError, FxPruneError, InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.groups import Group
from fxprune.graph.modules import as_inputs
from fxprune.scoring.context import Context
from fxprune.scoring.saliency import normalized
from fxprune.scoring.score import Scores, score


class Residual(nn.Module):
    """Batch norm, a convolution from the residual stream to itself, a concatenation, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.turn = nn.Conv2d(6, 6, 1)
        self.side = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(10 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.turn(x)
        return self.head(torch.cat([x, self.side(x)], 1).flatten(1))


class Attention(nn.Module):
    """Fused query, key and value, so that a head has several positions on one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv = nn.Linear(5, 8), nn.Linear(8, 24)
        self.out, self.leave = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, 4, 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 8)
        return self.leave(x + self.out(y))


class Tied(nn.Module):
    """One weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.c = nn.Linear(3, 4), nn.Linear(4, 2)
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(F.relu(self.a(F.relu(self.enter(x))))))


class Embedded(nn.Module):
    """A position embedding that is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(3, 4), nn.Linear(4, 2)
        self.register_buffer("pos", torch.arange(20.0).reshape(1, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x) + self.pos)


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (1, 2, 2, 2)),
    "attention": (Attention, (1, 3, 5)),
    "tied": (Tied, (1, 3)),
    "embedded": (Embedded, (1, 5, 3)),
    "grouped": (
        lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Flatten(), nn.Linear(32, 2)),
        (1, 2, 2, 2),
    ),
}


def made(name: str) -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    build, shape = NETS[name]
    net = build()
    return net, analyse(net, as_inputs(torch.randn(shape)))


def elements(graph: ChannelGraph, group: Group, channel: int) -> dict[str, Tensor]:
    """Tensor -> mask of the elements that go with a channel, made the slow way."""
    masks = {s.tensor: torch.zeros(graph.shapes[s.tensor], dtype=torch.bool) for s in group.slices}
    for s in group.slices:
        masks[s.tensor].index_fill_(s.axis, torch.from_numpy(s.positions[channel]), True)
    return masks


def noise(ctx: Context) -> dict[str, Tensor]:
    return {n: torch.randn(p.shape, generator=ctx.generator) for n, p in {**ctx.parameters, **ctx.buffers}.items()}


REDUCED: dict[str, Callable[[Tensor], float]] = {
    "sum": lambda s: float(s.sum()),
    "mean": lambda s: float(s.mean()),
    "max": lambda s: float(s.max()),
    "l2": lambda s: float(s.square().sum().sqrt()),
}


@pytest.mark.parametrize("reduce", REDUCED)
@pytest.mark.parametrize("name", NETS)
def test_a_channel_scores_the_elements_that_go_with_it_each_once(name: str, reduce: Any) -> None:
    net, graph = made(name)
    seen: dict[str, Tensor] = {}

    def criterion(ctx: Context) -> dict[str, Tensor]:
        seen.update(noise(ctx))
        return seen

    scores = score(graph, net, criterion, reduce=reduce)
    assert set(scores.values) == {g.name for g in graph.groups}
    assert graph.groups
    for group in graph.groups:
        for c in range(len(group)):
            masks = {n: m for n, m in elements(graph, group, c).items() if n in seen}
            all_of_it = torch.cat([seen[n].double()[m] for n, m in masks.items()])
            assert scores.values[group.name][c] == pytest.approx(REDUCED[reduce](all_of_it), rel=1e-4, abs=1e-6)


def test_the_first_producer_alone() -> None:
    net, graph = made("residual")
    s = torch.arange(6.0)[:, None, None, None].expand(6, 2, 3, 3)
    scores = score(graph, net, lambda ctx: {**noise(ctx), "stem.weight": s}, reduce="first").values
    assert scores["stem.weight:0"].tolist() == [18.0 * k for k in range(6)]
    # where the first has no saliency, the next that makes the channel
    other = score(graph, net, lambda ctx: {**noise(ctx), "stem.weight": s, "turn.weight": torch.ones(6, 6, 1, 1)})
    assert set(other.values) == set(scores)
    turned = score(
        graph,
        net,
        lambda ctx: {"turn.weight": torch.ones(6, 6, 1, 1), "side.weight": noise(ctx)["side.weight"]},
        reduce="first",
    )
    assert turned.values["stem.weight:0"].tolist() == [6.0] * 6


def test_a_tensor_cut_on_both_axes_really_occurs_above() -> None:
    _, graph = made("residual")
    axes = [(s.tensor, s.axis) for s in graph.groups[0].slices]
    assert ("turn.weight", 0) in axes
    assert ("turn.weight", 1) in axes


def test_saliencies_are_summed_once_a_tensor_and_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    net, graph = made("residual")
    sums: list[tuple[int, ...]] = []
    plain = Tensor.sum

    def counting(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sums.append(tuple(self.shape))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "sum", counting)
    score(graph, net, lambda ctx: {n: torch.ones(p.shape) for n, p in ctx.parameters.items()})
    # for the columns of both its groups; its block's sum is that of these
    assert sums.count((3, 40)) == 1


def test_running_statistics_are_no_weights_but_embeddings_are() -> None:
    net, graph = made("residual")
    held: list[str] = []
    score(graph, net, lambda ctx: held.extend(ctx.buffers) or noise(ctx))  # type: ignore[func-returns-value]
    assert held == []
    net, graph = made("embedded")
    score(graph, net, lambda ctx: held.extend(ctx.buffers) or noise(ctx))  # type: ignore[func-returns-value]
    assert held == ["pos"]


def test_a_tied_weight_has_one_name_and_counts_once() -> None:
    net, graph = made("tied")
    names: list[str] = []
    score(graph, net, lambda ctx: names.extend(ctx.parameters) or noise(ctx))  # type: ignore[func-returns-value]
    assert sorted(names) == ["a.weight", "c.bias", "c.weight", "enter.bias", "enter.weight"]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("none", [4.0, -2.0, 1.0, 1.0]),
        ("mean", [2.0, -1.0, 0.5, 0.5]),
        ("max", [1.0, -0.5, 0.25, 0.25]),
        ("standardize", [3 / 4.5**0.5, -3 / 4.5**0.5, 0.0, 0.0]),
        ("rank", [7 / 8, 1 / 8, 1 / 2, 1 / 2]),
    ],
)
def test_normalization_by_hand(how: Any, expected: list[float]) -> None:
    assert normalized(np.array([4.0, -2.0, 1.0, 1.0]), how).tolist() == pytest.approx(expected)
    assert len(set(normalized(np.array([3.0, 3.0]), how))) == 1
    assert len(normalized(np.array([]), how)) == 0


@pytest.mark.parametrize("how", ["none", "mean", "max"])
def test_normalization(how: Any) -> None:
    net, graph = made("residual")
    plain = score(graph, net, noise, normalize="none").values
    scores = score(graph, net, noise, normalize=how).values
    for name, v in plain.items():
        size = {"none": 1.0, "mean": np.abs(v).mean(), "max": np.abs(v).max()}[how]
        np.testing.assert_allclose(scores[name], v / size)
    zeros = score(graph, net, lambda ctx: {n: p * 0 for n, p in ctx.parameters.items()}, normalize=how)
    assert all((v == 0).all() for v in zeros.values.values())


def test_scores_of_groups_are_taken_as_they_are() -> None:
    net, graph = made("residual")
    given = {g.name: np.arange(len(g)) for g in graph.groups}
    scores = score(graph, net, lambda ctx: given)
    for name, v in given.items():
        np.testing.assert_array_equal(scores.values[name], v)


def test_scores_add_up_where_they_are_sums_over_elements() -> None:
    net, graph = made("residual")
    given = {g.name: np.arange(len(g)) for g in graph.groups}
    assert score(graph, net, noise).additive
    assert not score(graph, net, noise, reduce="mean").additive
    assert not score(graph, net, noise, normalize="mean").additive
    assert not score(graph, net, lambda ctx: given).additive
    assert not score(graph, net, "magnitude").additive


def test_scores_print_compare_and_survive_json() -> None:
    net, graph = made("residual")
    scores = score(graph, net, noise)
    assert Scores.from_json(scores.to_json()) == scores
    assert scores != score(graph, net, noise, seed=1)
    assert scores != "scores"
    assert repr(scores).splitlines()[0] == "Scores by noise: 2 groups, 10 channels"
    assert "stem.weight:0: 6 channels, " in repr(scores)
    with pytest.raises(ValueError, match="read-only"):
        scores.values["stem.weight:0"][0] = 0.0


# ---- the model at work ----------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def batches(n: int = 2) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [(torch.randn(4, 2, 2, 2, generator=g), torch.randint(3, (4,), generator=g)) for _ in range(n)]


def gradient_norms(ctx: Context) -> dict[str, Tensor]:
    return {n: g.abs() for n, g in ctx.gradients().items()}


def test_gradients_are_those_of_the_mean_loss_in_eval_mode() -> None:
    net, graph = made("residual")
    net.train()
    got: dict[str, Tensor] = {}
    score(graph, net, lambda ctx: got.update(ctx.gradients()) or got, data=batches(), loss=loss_of)  # type: ignore[func-returns-value]
    ours = copy.deepcopy(net).eval()
    torch.stack([loss_of(ours, b) for b in batches()]).mean().backward()  # type: ignore[no-untyped-call]
    for name, p in ours.named_parameters():
        torch.testing.assert_close(got[name], p.grad)


def test_a_loss_that_draws_noise_is_the_same_function_each_time() -> None:
    net, graph = made("residual")
    values: list[list[float]] = []

    def noisy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(model, (batch[0] + torch.randn_like(batch[0]), batch[1]))

    def criterion(ctx: Context) -> dict[str, Tensor]:
        values.extend([ctx.loss(b).item() for b in ctx.batches] for _ in range(2))
        return noise(ctx)

    x = batches(1)[0]
    score(graph, net, criterion, data=[x, (x[0].clone(), x[1])], loss=noisy)
    assert values[0] == values[1]
    assert values[0][0] != values[0][1]  # each batch has noise of its own


def test_data_is_read_once_even_if_it_can_be_read_only_once() -> None:
    net, graph = made("residual")

    def twice(ctx: Context) -> dict[str, Tensor]:
        first, second = ctx.gradients(), ctx.gradients()
        assert all(torch.equal(first[n], second[n]) for n in first)
        return first

    score(graph, net, twice, data=iter(batches()), loss=loss_of)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_come_even_where_the_caller_has_switched_them_off(context: Callable[[], Any]) -> None:
    net, graph = made("residual")
    data = batches()
    expected = score(graph, net, gradient_norms, data=data, loss=loss_of)
    with context():
        assert score(graph, net, gradient_norms, data=data, loss=loss_of) == expected


def test_frozen_parameters_are_scored_like_any() -> None:
    net, graph = made("residual")
    expected = score(graph, net, gradient_norms, data=batches(), loss=loss_of)
    net.requires_grad_(False)
    assert score(graph, net, gradient_norms, data=batches(), loss=loss_of) == expected
    assert not any(p.requires_grad for p in net.parameters())


def test_a_rude_loss_leaves_no_trace() -> None:
    """It trains, steps batch norm statistics, draws random numbers and fills `.grad`; all but a weight is put back."""
    net, graph = made("residual")
    net.train()
    net.stem.requires_grad_(False)  # type: ignore[union-attr]
    net.head.bias.grad = torch.full((3,), 7.0)  # type: ignore[union-attr]
    grad = net.head.bias.grad  # type: ignore[union-attr]
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()

    def rude(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        model.train()
        torch.rand(5)
        loss = loss_of(model, batch)
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        model.bn.register_buffer("running_mean", torch.zeros(6))  # type: ignore[union-attr, operator]
        return loss

    score(graph, net, gradient_norms, data=batches(), loss=rude)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())
    assert [p.requires_grad for p in net.stem.parameters()] == [False, False]  # type: ignore[union-attr]
    assert net.head.bias.grad is grad  # type: ignore[union-attr]
    assert grad.eq(7).all()
    assert net.head.weight.grad is None  # type: ignore[union-attr]
    assert torch.equal(torch.get_rng_state(), random)


def test_the_model_is_put_back_when_a_criterion_fails() -> None:
    net, graph = made("residual")
    net.train()

    def failing(ctx: Context) -> dict[str, Tensor]:
        raise ZeroDivisionError

    random = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError):
        score(graph, net, failing)
    assert net.training
    assert torch.equal(torch.get_rng_state(), random)


# ---- what is said when something is wrong ---------------------------------------------------------------------------


def writes_data(ctx: Context) -> dict[str, Tensor]:
    ctx.parameters["stem.weight"].data[0, 0, 0, 0] += 1  # no version tells of this
    return noise(ctx)


def replaces(ctx: Context) -> dict[str, Tensor]:
    ctx.model.stem.weight = nn.Parameter(torch.ones(6, 2, 3, 3))  # type: ignore[union-attr]
    return noise(ctx)


def hooks(ctx: Context) -> dict[str, Tensor]:
    ctx.model.stem.register_forward_hook(lambda *a: None)  # type: ignore[operator, union-attr]
    return noise(ctx)


def overwrites(ctx: Context) -> dict[str, Tensor]:
    with torch.no_grad():
        ctx.parameters["stem.weight"].zero_()
    return noise(ctx)


BAD_CRITERIA: list[tuple[Any, str]] = [
    ("magnitud", r"did you mean 'magnitude'\?"),
    (3, "criterion is a int; pass a registered name"),
    (lambda ctx: None, r"criterion '<lambda>' returned a NoneType; return a dict of tensor name"),
    (lambda ctx: {}, "returned nothing; return a dict"),
    (lambda ctx: {"stem.wieght": torch.ones(1)}, r"returned 'stem.wieght', .* did it mean 'stem.weight'\?"),
    (lambda ctx: {"stem.weight": torch.ones(3)}, r"shape \(3,\) for stem.weight; .* own shape \(6, 2, 3, 3\)"),
    (lambda ctx: {**noise(ctx), "bn.weight": torch.full((6,), torch.nan)}, "the saliency of bn.weight holds NaN"),
    (lambda ctx: {**noise(ctx), "bn.weight": torch.full((6,), torch.inf)}, "bn.weight holds an infinite value"),
    (lambda ctx: {"stem.weight:0": [1.0] * 6}, "no score for group side.weight:0; score every group"),
    (lambda ctx: {g.name: [1.0] for g in ctx.graph.groups}, r"shape \(1,\) for group .* \(6,\)"),
    (lambda ctx: {g.name: [np.nan] * len(g) for g in ctx.graph.groups}, "scores of group stem.weight:0 holds NaN"),
    (lambda ctx: {"stem.weight:0": [1.0] * 6, **noise(ctx)}, "scores of groups .* beside saliencies; return one kind"),
    (lambda ctx: {"stem.weight": torch.ones(6, 2, 3, 3)}, "no saliency for any tensor of group side.weight:0"),
    (overwrites, "criterion 'overwrites' changed the model: stem.weight was written to in place"),
    (writes_data, "stem.weight was written to in place; .*; the weights have been put back"),
    (replaces, "changed the model: stem.weight was replaced; a criterion must work on copies"),
    (hooks, r"changed the model: it left a hook on a module; call the handle's remove\(\)"),
]


@pytest.mark.parametrize(("criterion", "message"), BAD_CRITERIA)
def test_a_bad_criterion_is_named_with_what_to_do(criterion: Any, message: str) -> None:
    net, graph = made("residual")
    with pytest.raises(CriterionError, match=message.replace("saliencies;", "saliencies of tensors;")):
        score(graph, net, criterion)


@pytest.mark.parametrize("bad", [overwrites, writes_data])
def test_weights_that_a_foreign_criterion_changed_are_put_back(bad: Any) -> None:
    net, graph = made("residual")
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CriterionError, match="put back"):
        score(graph, net, bad)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())

    def fails_half_way(ctx: Context) -> Any:
        bad(ctx)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        score(graph, net, fails_half_way)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())


def test_a_criterion_that_is_partial_leaves_the_rest_for_last() -> None:
    net, graph = made("residual")

    def some(ctx: Context) -> dict[str, Tensor]:
        return {"bn.weight": torch.arange(6.0)}

    with pytest.raises(CriterionError, match="or declare `partial = True`: such groups are then pruned last"):
        score(graph, net, some)
    some.partial = True  # type: ignore[attr-defined]
    scores = score(graph, net, some, normalize="max")
    assert scores.unscored == ("side.weight:0",)
    assert scores.values["side.weight:0"].tolist() == [1.0] * 4  # as high as the highest


def nan_loss(model: nn.Module, batch: Any) -> Tensor:
    return loss_of(model, batch) * torch.nan


BAD_DATA: list[tuple[dict[str, Any], type[FxPruneError], str]] = [
    ({}, InputsError, r"'gradient_norms' looks at the model at work: pass data=, .*, and loss=, a callable"),
    ({"data": batches()}, InputsError, r"pass loss=, a callable loss\(model, batch\) that returns a scalar tensor"),
    ({"loss": loss_of}, InputsError, "pass data=, an iterable of batches"),
    ({"data": [], "loss": loss_of}, InputsError, "data holds no batch"),
    ({"data": torch.ones(2), "loss": loss_of}, InputsError, r"data is one Tensor; .* such as the list \[batch\]"),
    ({"data": {"x": 1}, "loss": loss_of}, InputsError, "data is one dict; pass an iterable of batches"),
    ({"data": 3, "loss": loss_of}, InputsError, "data must be batches, in a list, a DataLoader or another iterable"),
    ({"data": [1], "loss": loss_of}, InputsError, r"loss\(model, batch\) failed on batch 0 \(a int\): TypeError"),
    ({"data": [torch.ones(2)], "loss": lambda m, b: b}, InputsError, r"returned a tensor of shape \(2,\) on batch 0"),
    ({"data": [1], "loss": lambda m, b: 0.5}, InputsError, "returned float on batch 0; return one scalar float"),
    ({"data": [1], "loss": lambda m, b: torch.ones(())}, InputsError, "does not depend on the model's parameters"),
    ({"data": batches(), "loss": nan_loss}, CriterionError, "'gradient_norms': the loss of batch 0 is nan"),
]


@pytest.mark.parametrize(("given", "message_of", "message"), BAD_DATA)
def test_bad_data_and_losses_get_one_clear_sentence(
    given: dict[str, Any], message_of: type[FxPruneError], message: str
) -> None:
    net, graph = made("residual")
    with pytest.raises(message_of, match=message) as caught:
        score(graph, net, gradient_norms, **given)
    assert "\n" not in str(caught.value)


def test_another_model_than_the_graphs_is_refused() -> None:
    net, graph = made("residual")
    with pytest.raises(InputsError, match=r"traced from another model: .* is missing in this Attention"):
        score(graph, made("attention")[0], noise)
    net.stem = nn.Conv2d(2, 7, 3)
    with pytest.raises(InputsError, match=r"stem.weight has shape \(7, 2, 3, 3\) in this Residual, the graph has"):
        score(graph, net, noise)
    with pytest.raises(InputsError, match="is on the meta device"):
        score(graph, Residual().to("meta"), noise)


def test_an_unknown_option_is_refused() -> None:
    net, graph = made("residual")
    with pytest.raises(CriterionError, match="reduce is 'median'; use one of 'sum', 'mean', 'max', 'l2', 'first'"):
        score(graph, net, noise, reduce="median")  # type: ignore[arg-type]
    with pytest.raises(
        CriterionError, match="normalize is 'sum'; use one of 'none', 'mean', 'max', 'standardize', 'rank'"
    ):
        score(graph, net, noise, normalize="sum")  # type: ignore[arg-type]
