"""The recipe that a run uses where nothing is said: a rate of the weights' size, warm-up, cosine, the dense outputs."""

from __future__ import annotations

import itertools
import sys
import warnings

import pytest
import torch
from pytorch_optimizer import SOAP
from torch import nn
from training_runs import IMAGES, loss, net, run

import fxprune
from fxprune import Distillation, Training
from fxprune.training.options import relative_rate, set_rate, suit


def rates(training: Training) -> list[float]:
    return [training.rate(step) for step in range(training.total)]


def test_the_rate_rises_for_a_tenth_and_falls_to_zero_along_a_cosine() -> None:
    found = rates(Training(80, after=20))
    assert found.index(max(found)) == 9
    assert all(a < b for a, b in itertools.pairwise(found[:10]))
    assert all(a > b for a, b in itertools.pairwise(found[9:]))
    assert found[50] == pytest.approx(0.5)
    assert found[-1] < 0.001


def test_a_constant_rate_is_two_arguments_away() -> None:
    assert set(rates(Training(20, warmup=0, anneal=False))) == {1.0}


def test_the_rate_is_a_share_of_the_weights_size() -> None:
    model = net()
    wide = [p for p in model.parameters() if p.dim() > 1]
    size = torch.cat([p.detach().flatten() for p in wide]).square().mean().sqrt()
    (group,) = Training(1).made(model.parameters()).param_groups
    assert group["lr"] == pytest.approx(0.003 * float(size), rel=1e-5)
    with torch.no_grad():
        for p in wide:
            p.mul_(3)
    assert relative_rate(model.parameters()) == pytest.approx(3 * group["lr"], rel=1e-5)
    (stated,) = Training(1, learning_rate=1e-5).made(model.parameters()).param_groups
    assert stated["lr"] == 1e-5


@pytest.mark.parametrize(("samples", "times"), [(0, 1), (1, 1), (4, 2), (25, 5), (32, 32**0.5), (512, 32**0.5)])
def test_a_found_rate_grows_with_the_root_of_the_samples(samples: int, times: float) -> None:
    model, training = net(), Training(1)
    optimizer = training.made(model.parameters())
    one = optimizer.param_groups[0]["lr"]
    suit(training, optimizer, samples)
    set_rate(optimizer, 1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(times * one)
    assert relative_rate(model.parameters(), samples) == pytest.approx(times * one, rel=1e-4)


@pytest.mark.parametrize(
    "own", [Training(1, learning_rate=1e-3), Training(1, optimizer=lambda p: torch.optim.SGD(p, 1e-3))]
)
def test_a_rate_that_was_given_stays(own: Training) -> None:
    optimizer = own.made(net().parameters())
    suit(own, optimizer, 16)
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_soap_moves_every_matrix_by_a_share_of_its_own_size() -> None:
    model, training = net(), Training(1, optimizer="soap")
    matrices = [p for p in model.parameters() if p.dim() > 1]
    with torch.no_grad():
        matrices[0].mul_(5)
        matrices[1].zero_()
    of_all = relative_rate(model.parameters(), 16)
    optimizer = training.made(model.parameters())
    assert isinstance(optimizer, SOAP)
    suit(training, optimizer, 16)
    first, *others = optimizer.param_groups
    assert {id(p) for p in first["params"]} == {id(p) for p in model.parameters() if p.dim() < 2}
    assert first["lr"] == pytest.approx(of_all, rel=1e-4)
    assert [id(p) for group in others for p in group["params"]] == list(map(id, matrices))
    want = [0.1 * of_all if p is matrices[1] else relative_rate([p], 16) for p in matrices]
    assert [group["lr"] for group in others] == pytest.approx([2 * rate for rate in want], rel=1e-3)
    assert training.distillation == Training(1).distillation


def test_soap_takes_one_rate_for_all_where_it_is_given() -> None:
    (group,) = Training(1, optimizer="soap", learning_rate=1e-3).made(net().parameters()).param_groups
    assert group["lr"] == 1e-3


def test_soap_trains_what_has_no_vectors() -> None:
    model = nn.Linear(4, 3, bias=False)
    none, only = Training(1, optimizer="soap").made(model.parameters()).param_groups
    assert not none["params"]
    assert none["lr"] == pytest.approx(relative_rate([model.weight]))
    assert only["lr"] == pytest.approx(2 * none["lr"])


def test_soap_begins_anew_for_what_was_cut() -> None:
    with pytest.warns(UserWarning, match="SOAP begins anew for . of"):
        small = run(Training(24, after=6, optimizer="soap", distill=None))
    losses = fxprune.report(small).history.column("loss")
    assert losses[-5:].mean() < losses[:5].mean()


def test_an_optimizer_is_refused_by_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(fxprune.InputsError, match="optimizer='lion' is unknown; pass None for AdamW, 'soap', or a fun"):
        Training(1, optimizer="lion")
    with pytest.raises(fxprune.InputsError, match=r"learning_rate=0\.1 is for AdamW and SOAP, .* its rate there"):
        Training(1, learning_rate=0.1, optimizer=lambda p: torch.optim.SGD(p, 0.1))
    monkeypatch.setattr("fxprune.training.options.in_shards", lambda t: t.shape == (8,))
    shares = [nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(8))]
    with pytest.raises(fxprune.InputsError, match="these parameters are sharded"):
        Training(1, optimizer="soap").made(shares)
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(fxprune.InputsError, match=r'needs pytorch-optimizer \(.*\): pip install "fxprune\[soap\]"'):
        Training(1, optimizer="soap").made(net().parameters())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scheduler", ["one_shot", "soft"])
def test_a_run_counts_the_samples_of_a_step(scheduler: str, accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("fxprune.training.run.suit", lambda training, optimizer, samples: seen.append(samples))
    run(Training(20, accumulate=accumulate, distill=None), scheduler, data=[IMAGES[:6], IMAGES[6:12]])
    assert seen == [6 * accumulate]


def test_weights_that_are_all_zero_still_move() -> None:
    assert relative_rate([torch.zeros(4, 4)]) > 0
    assert relative_rate([torch.full((3,), 0.5)]) == pytest.approx(0.0015)


@pytest.mark.parametrize("options", [{"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"distill": "features"}])
def test_what_is_no_recipe_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(fxprune.InputsError, match=next(iter(options))):
        Training(10, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", ["one_shot", "soft"])
def test_the_dense_outputs_are_learned_from_unless_switched_off(scheduler: str) -> None:
    """With a task of weight zero only the dense model's outputs are left to learn from."""

    def idle(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return loss(model, batch) * (0.0 if model.training else 1.0)

    def distance(distill: Distillation | str | None) -> float:
        dense = net().eval()
        small = run(Training(60, learning_rate=5e-3, distill=distill), scheduler, how=idle, model=dense)
        with torch.no_grad():
            return float((small(IMAGES) - dense(IMAGES)).square().mean())

    assert distance("auto") < 0.5 * distance(None)
    assert distance("auto") == pytest.approx(distance(Distillation(16.0)))


def test_a_loss_that_does_not_call_the_model_trains_without_the_dense_one_and_says_so() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x)

    def inner(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return loss(model.body, batch)  # type: ignore[arg-type]

    with pytest.warns(UserWarning, match=r"without the dense model's outputs: the loss does not call the Outside"):
        run(Training(10), "one_shot", how=inner, model=Outside())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(Training(10, distill=None), "one_shot", how=inner, model=Outside())
    with pytest.raises(fxprune.InputsError, match=r"does not call the Outside itself.*distill=None"):
        run(Training(10, distill=Distillation()), "one_shot", how=inner, model=Outside())


def test_outputs_that_differ_in_training_are_not_compared() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
            y = self.body(x)
            return (y, y) if self.training else y

    def first(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        out = model(batch)
        return (out[0] if isinstance(out, tuple) else out).square().mean()

    with pytest.warns(UserWarning, match="not of the structure and shapes of the dense model's in eval mode"):
        run(Training(10), "one_shot", how=first, model=Twice())


def test_both_cuts_of_an_attention_learn_from_outputs_but_not_from_features() -> None:
    model = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))

    def near(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()  # type: ignore[no-any-return]

    given = {"data": [x], "example_inputs": x, "attention": "both", "progress": False}
    fxprune.prune(model, "magnitude", 0.3, loss=near, training=Training(2), **given)
    training = Training(2, distill=Distillation(features=1.0))
    with pytest.raises(fxprune.InputsError, match=r"features= knows one cut only"):
        fxprune.prune(model, "magnitude", 0.3, loss=near, training=training, **given)
