"""Laws that every criterion obeys, over one table of them, and numbers worked out by hand."""

import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fxprune import registry
from fxprune.criteria.activation import Activation
from fxprune.criteria.bn_scale import BnScale
from fxprune.criteria.diff_pruning import DiffPruning
from fxprune.criteria.fisher import Fisher
from fxprune.criteria.fpgm import Fpgm
from fxprune.criteria.gradflow import GradFlow
from fxprune.criteria.gradflow_preserving import GradFlowPreserving
from fxprune.criteria.hrank import HRank
from fxprune.criteria.lamp import Lamp
from fxprune.criteria.magnitude import Magnitude
from fxprune.criteria.obs import Obs
from fxprune.criteria.random import Random
from fxprune.criteria.snip import Snip
from fxprune.criteria.synflow import SynFlow
from fxprune.criteria.taylor import Taylor
from fxprune.criteria.wanda import Wanda
from fxprune.errors import CriterionError, InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.scoring.context import Context
from fxprune.scoring.score import Scores, score


@dataclass(frozen=True)
class Row:
    """One criterion, and which laws read differently for it (with the reason)."""

    name: str
    make: Callable[[], Any]
    needs: str = ""  # "loss", or "forward" for the model's run alone
    follows_weights: bool = True  # Random does not look at them: its scores stay where they are
    distinct: bool = True  # counts tie
    over: str = "samples"  # what the mean runs over: batches that are cut otherwise give other scores
    halves: bool = True  # a finite difference of half-precision weights is refused
    loses_nan: bool = False  # looks at norms alone: NaN in a convolution is none of its business


TABLE = [
    Row("magnitude", Magnitude),
    Row("magnitude", lambda: Magnitude(p=1)),
    Row("random", Random, follows_weights=False),
    Row("taylor", Taylor, "loss"),
    Row("taylor", lambda: Taylor(signed=True), "loss"),
    Row("taylor", lambda: Taylor(per_sample=True), "loss"),
    Row("gradflow", GradFlow, "loss"),
    Row("gradflow", lambda: GradFlow("exact"), "loss"),
    Row("gradflow", lambda: GradFlow("finite_difference"), "loss", halves=False),
    Row("gradflow", lambda: GradFlow(form="literal"), "loss"),
    Row("gradflow_preserving", GradFlowPreserving, "loss"),
    Row("fisher", Fisher, "loss"),
    Row("fisher", lambda: Fisher(per_sample=False), "loss", over="batches"),
    Row("snip", Snip, "loss"),
    Row("synflow", SynFlow),
    Row("wanda", Wanda, "forward"),
    Row("activation", Activation, "forward"),
    Row("activation", lambda: Activation("mean", "read"), "forward"),
    Row("activation", lambda: Activation("apoz"), "forward", distinct=False),
    Row("bn_scale", BnScale, loses_nan=True),
    Row("lamp", Lamp),
    Row("fpgm", Fpgm),
    Row("hrank", HRank, "forward"),
    Row("hrank", lambda: HRank(exact=True), "forward", distinct=False),
    Row("obs", Obs, "forward"),
    Row("diff_pruning", DiffPruning, "loss"),
    Row("diff_pruning", lambda: DiffPruning(0.9, per_sample=False), "loss", over="batches"),
]
every = pytest.mark.parametrize("row", TABLE, ids=lambda row: repr(row.make()))


class Net(nn.Module):
    """A small convolutional net with every kind of tensor that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.two, self.gn = nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(1, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.bn(self.one(x)))
        return self.out(torch.tanh(self.gn(self.two(x))).mean((2, 3)))


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def data(n: int = 2, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 2, 5, 5, generator=g), torch.randint(3, (size,), generator=g)) for _ in range(n)]


def net_and_graph() -> tuple[nn.Module, ChannelGraph]:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.bn.running_mean.normal_()  # type: ignore[operator, union-attr]
        for p in (net.bn.weight, net.gn.weight):
            p.normal_(1, 0.3)
    return net, analyse(net, as_inputs(torch.randn(1, 2, 5, 5)))


def scored(row: Row, net: nn.Module, graph: ChannelGraph, **options: Any) -> Scores:
    given = {"data": data(), "loss": loss_of} if row.needs else {}
    return score(graph, net, row.make(), **given, **options)


# ---- laws -----------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_criterion_of_ours() -> None:
    own = {p.name for p in registry.names_with_origin("criteria") if p.package == "fxprune"}
    assert {row.name for row in TABLE} == own
    assert all(type(row.make()) is registry.get("criteria", row.name) for row in TABLE)


@every
def test_one_finite_number_a_channel(row: Row) -> None:
    net, graph = net_and_graph()
    values = scored(row, net, graph).values
    assert {n: v.shape for n, v in values.items()} == {"one.weight:0": (6,), "two.weight:0": (8,)}
    assert all(v.dtype == np.float64 and np.isfinite(v).all() for v in values.values())
    assert all(len(set(v)) == len(v) for v in values.values()) or not row.distinct


@every
def test_the_same_seed_gives_the_same_scores(row: Row) -> None:
    net, graph = net_and_graph()
    torch.manual_seed(5)
    first = scored(row, net, graph, seed=3)
    torch.manual_seed(6)
    assert scored(row, net, graph, seed=3) == first
    assert (scored(row, net, graph, seed=4) == first) is row.follows_weights


@every
def test_the_model_is_left_as_it_was(row: Row) -> None:
    net, graph = net_and_graph()
    net.train()
    net.one.requires_grad_(False)  # type: ignore[union-attr]
    net.two.bias.grad = torch.ones(8)  # type: ignore[union-attr]
    grads = {n: p.grad for n, p in net.named_parameters()}
    state, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    modes = {n: m.training for n, m in net.named_modules()}
    flags = {n: p.requires_grad for n, p in net.named_parameters()}
    scored(row, net, graph)
    assert all(torch.equal(v, state[n]) for n, v in net.state_dict().items())
    assert all(p.grad is grads[n] for n, p in net.named_parameters())
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert {n: p.requires_grad for n, p in net.named_parameters()} == flags
    assert torch.equal(torch.get_rng_state(), random)


@every
def test_permuted_channels_have_permuted_scores(row: Row) -> None:
    net, graph = net_and_graph()
    before = scored(row, net, graph).values
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        for t in (net.one.weight, net.one.bias, net.bn.weight, net.bn.bias, net.bn.running_mean, net.bn.running_var):
            t.copy_(t[order])  # type: ignore[operator, index, union-attr]
        net.two.weight.copy_(net.two.weight[:, order])  # type: ignore[operator, index, union-attr]
    after = scored(row, net, graph).values
    expected = before["one.weight:0"][order.numpy()] if row.follows_weights else before["one.weight:0"]
    scale = np.abs(before["one.weight:0"]).max()
    # A finite difference in float32 carries rounding noise of about 1e-4.
    np.testing.assert_allclose(after["one.weight:0"], expected, rtol=0, atol=2e-3 * scale)
    np.testing.assert_allclose(after["two.weight:0"], before["two.weight:0"], rtol=0.02, atol=2e-3 * scale)


@every
def test_a_criterion_is_a_frozen_dataclass_that_prints_its_options(row: Row) -> None:
    criterion = row.make()
    assert is_dataclass(criterion)
    for f in fields(criterion):
        assert f"{f.name}={getattr(criterion, f.name)!r}" in repr(criterion)
        with pytest.raises(FrozenInstanceError):
            setattr(criterion, f.name, None)


@every
def test_missing_data_is_asked_for_in_one_sentence(row: Row) -> None:
    net, graph = net_and_graph()
    if not row.needs:
        score(graph, net, row.make())
        return
    wanted = "pass data=, .* and loss=" if row.needs == "loss" else "pass data=, an iterable of batches; or "
    with pytest.raises(InputsError, match=f"looks at the model at work: {wanted}") as caught:
        score(graph, net, row.make())
    assert "\n" not in str(caught.value)


@every
def test_nan_weights_and_losses_are_errors(row: Row) -> None:
    net, graph = net_and_graph()
    if row.needs == "loss":
        with pytest.raises(CriterionError, match="the loss of batch 0 is nan"):
            score(graph, net, row.make(), data=data(), loss=lambda m, b: loss_of(m, b) * torch.nan)
    if row.follows_weights and not row.loses_nan:
        with torch.no_grad():
            net.one.weight[0, 0, 0, 0] = torch.nan  # type: ignore[index, operator, union-attr]
        with pytest.raises(CriterionError, match=r"nan|NaN"):
            scored(row, net, graph)


@pytest.mark.parametrize("row", [r for r in TABLE if r.needs and r.over == "samples"], ids=lambda row: repr(row.make()))
def test_batches_are_a_mean_over_the_samples(row: Row) -> None:
    """Also where the score is not linear in the loss: g is accumulated over all batches before H g."""
    net, graph = net_and_graph()
    parts = data(3)
    whole = [(torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))]
    one = score(graph, net, row.make(), data=whole, loss=loss_of).values
    many = score(graph, net, row.make(), data=parts, loss=loss_of).values
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=0, atol=3e-3 * np.abs(one[name]).max())


# ---- by hand --------------------------------------------------------------------------------------------------------


def chain(a: list[float], b: list[float]) -> tuple[nn.Module, ChannelGraph]:
    """y = Σ b_i a_i x, one channel for each i."""
    net = nn.Sequential(nn.Linear(1, len(a), bias=False), nn.Linear(len(a), 1, bias=False))
    net.load_state_dict({"0.weight": torch.tensor(a)[:, None], "1.weight": torch.tensor(b)[None]})
    return net, analyse(net, as_inputs(torch.ones(1, 1)))


A, B = [3.0, -1.0, 0.5], [1.0, 2.0, -2.0]


def only(scores: Scores) -> list[float]:
    (values,) = scores.values.values()
    return [float(v) for v in values]


def half_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum() / 2


@pytest.mark.parametrize(("p", "expected"), [(1, [2.0, 1.5, 1.25]), (2, [5.0, 2.5, 2.125])])
def test_magnitude_by_hand(p: float, expected: list[float]) -> None:
    net, graph = chain(A, B)
    assert only(score(graph, net, Magnitude(p), normalize="none")) == expected
    assert only(score(graph, net, Magnitude(p))) == pytest.approx(np.array(expected) / np.mean(expected))
    assert only(score(graph, net, Magnitude(p), reduce="sum", normalize="none")) == [2 * v for v in expected]


def test_taylor_by_hand() -> None:
    """L = s²/2, s = Σ a_i b_i = 0: take x = 2 with s = 2 (3 − 2 − 1) = 0 away by a bias in the loss."""
    net, graph = chain(A, B)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) + 2.0).square().sum() / 2  # s = 2, g_a = s b, g_b = s a

    products = [2.0 * a * b for a, b in zip(A, B, strict=True)]
    given: dict[str, Any] = {"data": [torch.ones(1, 1)], "loss": loss}
    assert only(score(graph, net, Taylor(), **given)) == [2 * abs(v) for v in products]
    assert only(score(graph, net, Taylor(signed=True), **given)) == [-2 * v for v in products]


@pytest.mark.parametrize("method", ["exact", "finite_difference"])
def test_gradflow_of_a_quadratic_by_hand(method: Any) -> None:
    """L = θᵀQθ/2 gives g = Qθ, H = Q, so the saliency is θ ∘ Q²θ."""
    net, graph = chain(A, B)
    q = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, -1.0], [0.0, -1.0, 1.0]])

    def loss(model: nn.Module, batch: Any) -> Tensor:
        theta = model[0].weight[:, 0]  # type: ignore[index, union-attr]
        return theta @ q @ theta / 2

    theta = torch.tensor(A)
    expected = (theta * (q @ q @ theta)).tolist()  # (27, 1.5, 2.25) less the couplings: signs differ
    got = only(score(graph, net, GradFlow(method, form="literal"), data=[None], loss=loss))
    assert got == pytest.approx(expected, rel=1e-5 if method == "exact" else 1e-2)
    assert min(got) < 0 < max(got)
    kept = only(score(graph, net, GradFlowPreserving(method), data=[None], loss=loss))
    assert kept == pytest.approx([abs(v) for v in expected], rel=1e-5 if method == "exact" else 1e-2)


def test_gradflow_of_a_product_by_hand() -> None:
    """L = s²/2, s = Σ a_i b_i: H g in a_i is s S b_i + s² a_i with S = Σ (a² + b²), and alike in b_i."""
    a, b = [3.0, -1.0, 0.5], [1.0, 2.0, 2.0]
    net, graph = chain(a, b)
    s, total = sum(x * y for x, y in zip(a, b, strict=True)), sum(x * x + y * y for x, y in zip(a, b, strict=True))
    expected = [2 * s * total * x * y + s * s * (x * x + y * y) for x, y in zip(a, b, strict=True)]
    got = only(score(graph, net, GradFlow("exact", form="literal"), data=[torch.ones(1, 1)], loss=half_square))
    assert got == pytest.approx(expected, rel=1e-5)


def test_gradflow_predicts_how_the_gradient_norm_changes() -> None:
    """The sign: scaling channel c by 1 − t changes ‖g‖² by −2 t score(c), so the lowest score raises it most."""
    net, graph = net_and_graph()
    net.double().eval()
    double = [(x.double(), y) for x, y in data()]
    values = score(graph, net, GradFlow("exact", form="literal"), data=double, loss=loss_of).values

    def norm(changed: nn.Module) -> float:
        loss = torch.stack([loss_of(changed, b) for b in double]).mean()
        return sum(float(g.square().sum()) for g in torch.autograd.grad(loss, list(changed.parameters())))

    t = 1e-6
    for group in graph.groups:
        for c in range(len(group)):
            less, more = copy.deepcopy(net), copy.deepcopy(net)
            for factor, changed in ((1 - t, less), (1 + t, more)):
                named = dict(changed.named_parameters())
                for s in group.slices:
                    if s.tensor in named:
                        index = torch.from_numpy(s.positions[c])
                        part = named[s.tensor].detach().index_select(s.axis, index)
                        named[s.tensor].data.index_copy_(s.axis, index, part * factor)
            slope = (norm(less) - norm(more)) / (2 * t)
            assert slope == pytest.approx(-2 * values[group.name][c], rel=1e-4, abs=1e-7)


# ---- exact and finite difference ------------------------------------------------------------------------------------


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.qkv, self.leave = nn.Linear(3, 16), nn.Linear(16, 48), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.enter(x))
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        return self.leave(x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("build", [Net, Attending])
def test_exact_and_finite_difference_agree(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = build()
    shape = (2, 5, 5) if build is Net else (7, 3)
    batches = [torch.randn(4, *shape) for _ in range(2)]
    graph = analyse(net, as_inputs(batches[0][:1]))

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - 1).square().mean()

    exact = score(graph, net, GradFlow("exact"), data=batches, loss=loss).values
    near = score(graph, net, GradFlow("finite_difference"), data=batches, loss=loss).values
    for name, v in exact.items():
        assert np.linalg.norm(near[name] - v) < 1e-2 * np.linalg.norm(v)


class Once(torch.autograd.Function):
    """tanh, with a backward pass that cannot be differentiated again, like many fused kernels."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


@pytest.mark.parametrize("power", [1, 2])  # with 1 PyTorch itself sees nothing: the gradient that arrives is constant
def test_auto_falls_back_where_an_op_has_no_second_derivative(power: int) -> None:
    net, graph = chain(A, [0.2, 0.4, 0.3])
    given: dict[str, Any] = {"data": [torch.ones(1, 1)], "loss": lambda m, b: Once.apply(m(b)).pow(power).sum()}
    auto = score(graph, net, GradFlow(), **given)
    assert only(auto) == only(score(graph, net, GradFlow("finite_difference"), **given))
    truth = score(graph, net, GradFlow("exact"), data=given["data"], loss=lambda m, b: m(b).tanh().pow(power).sum())
    assert only(auto) == pytest.approx(only(truth), rel=1e-2)
    with pytest.raises(CriterionError, match=r"the second backward pass failed: .*method='finite_difference'"):
        score(graph, net, GradFlow("exact"), **given)


def test_auto_hides_no_other_error() -> None:
    net, graph = chain(A, B)

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            raise RuntimeError("a kernel of the user's own went wrong")

    with pytest.raises(InputsError, match=r"backward pass .* failed: RuntimeError: a kernel of the user's own"):
        score(graph, net, GradFlow(), data=[torch.ones(1, 1)], loss=lambda m, b: Broken.apply(m(b)).sum())


def test_a_finite_difference_puts_weights_back_even_when_the_loss_fails_on_the_way() -> None:
    net, graph = net_and_graph()
    before = copy.deepcopy(net.state_dict())
    calls: list[int] = []

    def failing(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        calls.append(len(calls))
        if len(calls) == 4:
            assert not torch.equal(model.one.weight, before["one.weight"])  # type: ignore[arg-type, union-attr]
            raise ArithmeticError("half way")
        return loss_of(model, batch)

    with pytest.raises(InputsError, match=r"failed on batch 1 .* ArithmeticError: half way"):
        score(graph, net, GradFlow("finite_difference"), data=data(), loss=failing)
    assert all(torch.equal(v, before[n]) for n, v in net.state_dict().items())


def test_a_finite_difference_of_half_precision_is_refused() -> None:
    net, graph = chain(A, B)
    with pytest.raises(CriterionError, match=r"0.weight is half precision, .* model.float\(\)"):
        score(
            graph,
            net.bfloat16(),
            GradFlow("finite_difference"),
            data=[torch.ones(1, 1, dtype=torch.bfloat16)],
            loss=half_square,
        )


def test_a_linear_loss_has_no_curvature() -> None:
    net, graph = chain(A, B)
    given: dict[str, Any] = {"data": [None], "loss": lambda m, b: m[0].weight.sum()}
    for method in ("exact", "finite_difference"):
        assert only(score(graph, net, GradFlowPreserving(method), **given)) == [0.0] * 3
        assert only(score(graph, net, GradFlow(method, power=1), **given)) == only(score(graph, net, Taylor(), **given))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Magnitude(p=0), r"Magnitude\(p=0\): p must be positive; use p=1"),
        (lambda: GradFlow(method="newton"), r"method='newton'\): use one of 'auto', 'exact', 'finite_difference'"),  # type: ignore[arg-type]
        (lambda: GradFlow(eps=-1.0), r"eps=-1.0\): the step must be positive"),
    ],
)
def test_bad_options_say_what_to_use(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(CriterionError, match=message):
        make()


def test_the_context_is_what_the_docs_say(capsys: pytest.CaptureFixture[str]) -> None:
    net, graph = net_and_graph()
    seen: list[Context] = []
    score(
        graph,
        net,
        lambda ctx: (seen.append(ctx), ctx.gradients())[1],  # type: ignore[func-returns-value]
        data=data(),
        loss=loss_of,
        progress=True,
    )
    (ctx,) = seen
    assert set(ctx.parameters) == {n for n, _ in net.named_parameters()}
    assert len(ctx.batches) == 2
    assert "<lambda>: gradients" in capsys.readouterr().out
