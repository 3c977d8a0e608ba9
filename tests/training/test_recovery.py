"""What else the dense model teaches: how it answers a step aside, all of its features, outputs without a condition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_runs import Stopping, run
from training_runs import net as runs_net

import fxprune
from fxprune import Distillation, Timesteps, Training
from fxprune.adapters.noising import VariancePreserving
from fxprune.training.calls import Call, again, watched
from fxprune.training.distillation import Teacher
from fxprune.training.features import FRESH

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 1])
TIMES = torch.tensor([900, 500, 100, 10])
PROCESS = VariancePreserving({"num_train_timesteps": 1000})
SILENT = {"output": 0.0}


class Net(nn.Module):
    """Conditional, with a dropout and batch statistics."""

    def __init__(self, seed: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.batch, self.drop, self.named, self.last = (
            nn.BatchNorm1d(8),
            nn.Dropout(dropout),
            nn.Embedding(4, 8),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor, timestep: Tensor | None = None, class_labels: Tensor | None = None) -> Tensor:
        y = self.batch(self.blocks(x))
        y = self.drop(y if class_labels is None else y + self.named(class_labels))
        return self.last(y)  # type: ignore[no-any-return]


def silent(net: nn.Module) -> Tensor:
    """A loss of zero that calls the model as a diffusion loss does."""
    return 0 * net(X, timestep=TIMES, class_labels=LABELS).sum()


def teacher(options: Distillation, dense: nn.Module | None = None) -> Teacher:
    dense = dense or Net()
    graph = fxprune.trace(dense.eval(), {"x": X, "class_labels": LABELS}) if options.features else None
    return Teacher(dense, graph, options, process=PROCESS)


def term(taught: Teacher, student: nn.Module) -> Tensor:
    torch.manual_seed(1)  # the directions are drawn
    return taught.loss(student, lambda: silent(student))


OPTIONS = {
    "outputs": Distillation(),
    "jacobian": Distillation(**SILENT, jacobian=1.0),
    "features": Distillation(**SILENT, features=1.0, layers=("blocks.0", "blocks.1")),
    "projections": Distillation(**SILENT, features=1.0, layers=("blocks.0", "blocks.1"), projections=True),
    "unconditional": Distillation(unconditional={"class_labels": 3}),
    "timesteps": Distillation(timesteps="snr", jacobian=0.5),
    "divergence": Distillation(kind="kl", timesteps="snr", unconditional={"class_labels": 3}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_gradient_is_that_of_the_term(name: str) -> None:
    """By finite differences along a direction in the weights, with dropout and batch statistics at work."""
    taught, student = teacher(OPTIONS[name]), Net(1, dropout=0.2).train()
    weights = list(student.parameters())
    along = [torch.randn_like(p) for p in weights]
    gradients = torch.autograd.grad(term(taught, student), weights, allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, along, strict=True) if g is not None)

    def at(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(weights, along, strict=True):
                p.add_(step * d)
            value = float(term(taught, student))
            for p, d in zip(weights, along, strict=True):
                p.sub_(step * d)
        return value

    assert (at(1e-3) - at(-1e-3)) / 2e-3 == pytest.approx(slope, rel=0.03, abs=3e-3)
    assert abs(slope) > 1e-2


# ---- Jacobians ------------------------------------------------------------------------------------------------------


def test_lengths_of_jacobians_by_hand() -> None:
    """Of a linear network J is its matrix, wherever one stands."""
    dense, student = nn.Linear(6, 3), nn.Linear(6, 3)
    taught = Teacher(dense, None, Distillation(output=0.0, jacobian=0.5))
    torch.manual_seed(1)
    v = torch.randn(4, 6)
    ours, theirs = ((v @ m.weight.mT).norm(dim=1) for m in (student, dense))
    torch.manual_seed(1)
    found = taught.loss(student, lambda: 0 * student(X).sum())
    want = 0.5 * (ours - theirs).square().sum() / theirs.square().sum()
    assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-2)


def test_a_turned_answer_of_the_same_strength_costs_nothing() -> None:
    """That is what matching lengths means: −f answers as strongly as f."""
    dense, student = nn.Linear(6, 3), nn.Linear(6, 3)
    with torch.no_grad():
        student.weight.copy_(-dense.weight)
    taught = Teacher(dense, None, Distillation(output=0.0, jacobian=1.0))
    assert float(taught.loss(student, lambda: 0 * student(X).sum()).detach()) < 1e-6


def test_dropout_drops_the_same_in_both_forwards() -> None:
    student = nn.Sequential(nn.Linear(6, 64), nn.Dropout(0.5), nn.Linear(64, 3)).train()
    with watched(student, (), random=True) as calls:
        student(X)
    (call,) = calls
    before = torch.get_rng_state()
    assert torch.equal(again(student, call), call.out)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(student(X), call.out)


def test_statistics_of_batches_count_once() -> None:
    student = Net(1).train()
    term(teacher(Distillation(jacobian=1.0, unconditional={"class_labels": 3})), student).backward()
    assert int(student.batch.num_batches_tracked) == 1
    alone = Net(1).train()
    silent(alone)
    assert torch.equal(student.batch.running_mean, alone.batch.running_mean)  # type: ignore[arg-type]


def test_what_has_no_input_to_move_is_told() -> None:
    words = nn.Sequential(nn.Embedding(4, 6), nn.Linear(6, 3))
    taught = Teacher(words, None, Distillation(jacobian=1.0))
    with pytest.raises(fxprune.InputsError, match="no floating-point tensor of two axes or more; leave jacobian= out"):
        taught.loss(words, lambda: words(LABELS).sum())


# ---- conditions and times -------------------------------------------------------------------------------------------


def test_both_branches_are_compared() -> None:
    """A number, or the condition of one sample, stands for all."""
    dense, student = Net().eval(), Net(1).eval()
    want = sum(
        (student(X, class_labels=y) - dense(X, class_labels=y)).square().mean() for y in (LABELS, LABELS * 0 + 3)
    )
    for free in (3, torch.tensor([3])):
        found = term(teacher(Distillation(unconditional={"class_labels": free})), student)
        assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-4)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("free", "message"),
    [
        ({"encoder_hidden_states": 0}, r"unconditional\['encoder_hidden_states'\]: the loss calls the Net without"),
        ({"class_labels": torch.zeros(3)}, r"unconditional\['class_labels'\] does not fit what the loss gives the Net"),
    ],
)
def test_conditions_that_a_call_does_not_have(free: dict[str, Any], message: str) -> None:
    with pytest.raises(fxprune.InputsError, match=message):
        term(teacher(Distillation(unconditional=free)), Net(1))


def test_nested_conditions_and_positions() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor, added: dict[str, Tensor]) -> Tensor:
            return x + added["text"]

    net = Nested()
    call = Call((X, {"text": X, "ids": X}), {}).unconditional(net, {"added": {"text": 0.0}})
    assert not call.args[1]["text"].any()
    assert torch.equal(call.args[1]["ids"], X)


def test_samples_count_by_their_time() -> None:
    dense, student = Net().eval(), Net(1).eval()
    errors = (student(X, class_labels=LABELS) - dense(X, class_labels=LABELS)).square().mean(1)
    density = Timesteps("snr").density(PROCESS, lambda t: t)
    want = (density.weight(PROCESS.shares(TIMES)) * errors).mean()
    found = term(teacher(Distillation(timesteps=Timesteps("snr"))), student)
    assert float(found.detach()) == pytest.approx(float(want.detach()), rel=1e-4)
    assert float(found.detach()) != pytest.approx(float(errors.mean().detach()), rel=1e-2)


@pytest.mark.parametrize("weighed", [None, "snr"])
def test_samples_that_are_drawn_more_often_count_less(weighed: str | None) -> None:
    """As in the loss that draws them so, and times what the option says."""
    dense, student = Net().eval(), Net(1).eval()
    errors = (student(X, class_labels=LABELS) - dense(X, class_labels=LABELS)).square().mean(1)
    drawn = Timesteps(importance=True)
    balance = drawn.density(PROCESS, lambda t: t).balance(PROCESS.shares(TIMES))
    assert balance is not None
    if weighed:
        balance = balance * Timesteps(weighed).density(PROCESS, lambda t: t).weight(PROCESS.shares(TIMES))
    taught = Teacher(Net(), None, Distillation(timesteps=weighed), process=PROCESS, drawn=drawn)
    assert float(term(taught, student).detach()) == pytest.approx(float((balance * errors).mean().detach()), rel=1e-4)
    plain = Teacher(Net(), None, Distillation(timesteps=weighed), process=PROCESS, drawn="uniform")
    assert float(term(plain, student).detach()) != pytest.approx(float(term(taught, student).detach()), rel=1e-2)


def test_what_options_need_is_told() -> None:
    with pytest.raises(fxprune.InputsError, match="is for diffusion models, and this is none"):
        run(Training(2, distill=Distillation(timesteps="snr")), "one_shot", criterion="magnitude")
    with pytest.raises(fxprune.InputsError, match='pass "snr" or a callable'):
        Distillation(timesteps="threshold")
    with pytest.raises(fxprune.InputsError, match="projections=True is for features, whose weight is 0"):
        Distillation(projections=True)
    taught, student = Teacher(Net(), None, Distillation(timesteps="snr"), process=PROCESS), Net(1)
    with pytest.raises(fxprune.InputsError, match="without a tensor timestep= of them"):
        taught.loss(student, lambda: student(X).sum())


def test_a_denoiser_is_taught_all_of_it() -> None:
    """Times and classes by their names; an adapter knows the process."""
    torch.manual_seed(0)
    sides = {"block_out_channels": (16, 16), "down_block_types": ("DownBlock2D",) * 2}
    sides |= {"up_block_types": ("UpBlock2D",) * 2, "layers_per_block": 1, "norm_num_groups": 4}
    net = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, num_class_embeds=3, **sides)
    data = [(torch.randn(2, 1, 8, 8), torch.tensor([0, 1]))]
    distill = Distillation(jacobian=0.1, unconditional={"class_labels": 2}, timesteps="snr")
    small = fxprune.prune(
        net, "magnitude", 0.3, data=data, training=Training(1, distill=distill), progress=False, verify=False
    )
    assert np.isfinite(fxprune.report(small).history.column("loss")).all()


# ---- projections ----------------------------------------------------------------------------------------------------


def test_projections_begin_as_the_plain_term_and_do_not_jump_at_the_hand_off() -> None:
    dense = runs_net().eval()
    pruner = fxprune.Pruner(
        runs_net().eval(),
        "one_shot",
        "magnitude",
        0.4,
        steps=1,
        example_inputs=torch.randn(2, 3, 6, 6),
        exact_norms=True,
    )
    options = Distillation(output=0.0, features=1.0, layers=("stem", "norm", "blocks.0"), projections=True)
    taught = Teacher(dense, pruner.graph, options)
    images = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))

    def value(net: nn.Module) -> float:
        return float(taught.loss(net, lambda: 0 * net(images).sum()).detach())

    assert value(pruner.net) < 1e-10
    optimizer = torch.optim.AdamW(pruner.net.parameters(), 0.01)
    assert taught.projections is not None
    taught.projections.join(optimizer, own=False)
    assert optimizer.param_groups[1]["lr"] == pytest.approx(FRESH * 0.01)
    pruner.step()
    taught.follow(pruner.mask)
    taught.loss(pruner.net, lambda: 0 * pruner.net(images).sum()).backward()
    with taught.projections.aside(optimizer):
        assert len(optimizer.param_groups) == 1
    optimizer.step()
    masked, held = value(pruner.net), dict(optimizer.state[taught.projections.matrices[0]])
    with taught.projections.aside(optimizer):
        small = pruner.finish(optimizer)
    keep = pruner.flow.plan.kept(pruner.graph)
    taught.cut(keep, optimizer)
    assert value(small) == pytest.approx(masked, rel=1e-4)
    matrix = taught.projections.matrices[0]
    kept = torch.from_numpy(keep[taught.projections.axes["stem"][1]].nonzero()[0])
    assert matrix.shape == (16, len(kept))
    assert len(kept) < 16
    assert any(p is matrix for p in optimizer.param_groups[1]["params"])
    assert torch.equal(optimizer.state[matrix]["exp_avg"], held["exp_avg"][:, kept])


def test_projections_learn_and_are_no_part_of_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Teacher] = []
    monkeypatch.setattr(Teacher, "cut", _spied(Teacher.cut, seen))
    options = Distillation(features=1.0, layers=("blocks.0", "stem"), projections=True)
    small = run(Training(4, after=4, distill=options), "one_shot", criterion="magnitude")
    assert {n.split(".")[0] for n in small.state_dict()} == {n.split(".")[0] for n in runs_net().state_dict()}
    assert seen[0].projections is not None
    (matrix, _) = seen[0].projections.matrices
    first = torch.zeros_like(matrix)
    first[matrix.argmax(0), torch.arange(matrix.shape[1])] = 1.0  # the identity, without its lost columns
    assert 1e-4 < float((matrix - first).abs().max().detach()) < 0.9


def _spied(cut: Callable[..., None], seen: list[Teacher]) -> Callable[..., None]:
    def spy(self: Teacher, *given: Any) -> None:
        seen.append(self)
        cut(self, *given)

    return spy


ALL = Distillation(features=1.0, layers=("stem", "blocks.0"), projections=True, jacobian=0.1, unconditional={"x": 0.0})


class Stop(Exception):
    """Somebody pulls the plug."""


def pull() -> None:
    raise Stop


@pytest.mark.parametrize(("scheduler", "at"), [("soft", 9), ("soft", 23), ("one_shot", 9)])
def test_a_stopped_run_goes_on_bit_for_bit(scheduler: str, at: int, tmp_path: Path) -> None:
    """With all options, while the masks move and after the hand-off."""
    training = Training(20 if scheduler == "soft" else 8, after=6, ema_decay=0.9, distill=ALL)
    want = run(training, scheduler, criterion="magnitude")
    kept = Training(**{**vars(training), "checkpoint_dir": tmp_path, "checkpoint_every": 4})
    with pytest.raises(Stop):
        run(kept, scheduler, Stopping(at, pull), criterion="magnitude")
    got = run(kept, scheduler, Stopping(99, pull), criterion="magnitude")
    assert all(map(torch.equal, want.state_dict().values(), got.state_dict().values()))
    for a, b in zip(fxprune.report(want).history, fxprune.report(got).history, strict=True):
        assert a == b
