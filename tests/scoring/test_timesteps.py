"""Which times of a diffusion process a loss sees: densities, strata, what the rules weigh, and prune() with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusion_nets import PIPELINES, model
from torch import Tensor

import fxprune
from fxprune import InputsError, Timesteps
from fxprune.adapter import find_adapter
from fxprune.adapters.noising import Flow, VariancePreserving
from fxprune.scoring.timesteps import Density, strata

PROCESSES: dict[str, Any] = {
    kind: VariancePreserving({"num_train_timesteps": 1000, "prediction_type": kind})
    for kind in ("epsilon", "sample", "v_prediction")
} | {"flow": Flow()}


def asked(times: Tensor) -> Tensor:
    raise AssertionError("the loss was measured")


# ---- densities ------------------------------------------------------------------------------------------------------


def test_uniform_times_are_those_of_the_strata() -> None:
    u = strata(20, torch.Generator().manual_seed(0))
    assert torch.equal(Timesteps().density(PROCESSES["epsilon"], asked).drawn(u), u)
    assert (u * 20).floor().tolist() == list(range(20))


def test_times_are_drawn_in_proportion_to_their_weight_and_stratified() -> None:
    density = Density(torch.tensor([0.0, 3.0, 1.0, 0.0]))
    shares = density.drawn(strata(4000, torch.Generator().manual_seed(0)))
    assert torch.equal(shares, shares.sort().values)
    cells = torch.bincount((shares * 4).long(), minlength=4)
    assert cells.tolist() == [0, 3000, 1000, 0]
    assert density.weight(torch.tensor([0.1, 0.3, 0.6, 0.99])).tolist() == [0, 3, 1, 0]
    edges = density.drawn(torch.tensor([0.0, 0.75, 1 - 1e-6]))
    assert ((edges >= 0.25) & (edges < 0.75)).all()


def test_stratified_draws_estimate_the_weighted_mean_with_less_variance() -> None:
    """E over draws of L is Σ w L / Σ w; strata leave less spread than independent draws."""
    density = Density(torch.arange(1.0, 11))
    loss = torch.linspace(0, 3, 10).exp()
    exact = float((density.weights * loss).sum() / density.weights.sum())

    def estimate(u: Tensor) -> float:
        return float(loss[(density.drawn(u) * 10).long()].mean())

    generator = torch.Generator().manual_seed(0)
    stratified = torch.tensor([estimate(strata(8, generator)) for _ in range(400)])
    independent = torch.tensor([estimate(torch.rand(8, generator=generator)) for _ in range(400)])
    assert abs(float(stratified.mean()) - exact) < 0.1
    assert stratified.std() < 0.4 * independent.std()


@pytest.mark.parametrize("kind", PROCESSES)
def test_min_snr_weighs_the_clean_samples_error_alike(kind: str) -> None:
    """factor · w = min(SNR, γ), where the factor turns an error of the clean sample into one of the answer."""
    process = PROCESSES[kind]
    density = Timesteps("snr", gamma=5).density(process, asked)
    times = process.at((torch.arange(1000) + 0.5) / 1000)
    torch.testing.assert_close(density.weights * process.factor(times), process.snr(times).clamp(max=5))
    clean, off, noise = torch.zeros(1, 1), torch.full((1, 1), 0.1), torch.randn(1, 1)
    for t in times[[20, 500, 900]]:
        noisy = process.noised(clean, noise, t[None])
        # the answer that belongs to another clean sample, at the same noisy one
        one = process.noised(torch.zeros(1, 1), torch.ones(1, 1), t[None])
        other = (noisy - process.noised(off, torch.zeros(1, 1), t[None])) / one
        error = process.target(off, other, t[None]) - process.target(clean, noise, t[None])
        torch.testing.assert_close(error.square(), process.factor(t[None]) * off.square(), rtol=1e-3, atol=1e-6)


def test_min_snr_stands_a_schedule_without_signal_at_its_end() -> None:
    for kind, last in (("epsilon", 1.0), ("v_prediction", 0.0)):
        process = VariancePreserving(
            {"num_train_timesteps": 1000, "rescale_betas_zero_snr": True, "prediction_type": kind}
        )
        assert float(Timesteps("snr").density(process, asked).weights[-1]) == pytest.approx(last, abs=1e-6)


def test_the_threshold_keeps_the_times_whose_loss_is_large_enough() -> None:
    process = PROCESSES["epsilon"]
    density = Timesteps("threshold", threshold=0.5).density(process, lambda t: 1 - t / 1000)
    kept = process.at(density.drawn(strata(100, torch.Generator().manual_seed(0))))
    assert density.weights.sum() == 10
    assert int(kept.max()) < 500 < int(kept.max()) + 60


def test_a_callable_weighs_times_as_the_model_takes_them() -> None:
    density = Timesteps(lambda t: (t >= 900).float()).density(PROCESSES["epsilon"], asked)
    assert int(PROCESSES["epsilon"].at(density.drawn(torch.tensor([0.0])))[0]) == 900
    flow = Timesteps(lambda t: (t < 100).float()).density(PROCESSES["flow"], asked)
    assert float(flow.drawn(torch.tensor([1 - 1e-6]))[0]) < 0.1


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("rule", ["uniform", "snr"])
def test_importance_draws_other_times_and_estimates_the_same(kind: str, rule: str) -> None:
    """E over draws of balance · L is Σ w L / Σ w, and the weights have a mean of 1."""
    process = PROCESSES[kind]
    plain, density = (Timesteps(rule, importance=on).density(process, asked) for on in (False, True))
    shares = (torch.arange(1000) + 0.5) / 1000
    size = (process.factor(process.at(shares)) * process.snr(process.at(shares)).clamp(1e-3, 1e3) ** -0.7).sqrt()
    times = strata(200_000, torch.Generator().manual_seed(0))
    drawn = density.drawn(times)
    balance = density.balance(drawn)
    assert balance is not None
    assert plain.balance(shares) is None
    assert float(balance.mean()) == pytest.approx(1, abs=1e-2)
    for loss in (lambda s: 1 - s, lambda s: s.square()):
        exact = float((plain.weight(shares) * loss(shares)).mean())
        assert float((balance * loss(drawn)).mean()) == pytest.approx(exact, rel=2e-2)
    counts = torch.bincount((drawn * 1000).long(), minlength=1000) / 200
    expected = plain.weight(shares) * (size / size.mean()).clamp(0.2, 3)
    torch.testing.assert_close(counts, expected / expected.mean(), rtol=0.1, atol=0.1)
    if (kind, rule) == ("epsilon", "uniform"):
        assert counts[:250].sum() > 1.5 * counts[500:750].sum(), "more where the errors are larger"


def test_importance_lowers_the_spread_of_the_gradient() -> None:
    """Of a gradient whose size at a time is the root of the error that is known there, as of a squared error."""
    process = PROCESSES["epsilon"]
    plain, density = (Timesteps(importance=on).density(process, asked) for on in (False, True))
    generator = torch.Generator().manual_seed(0)
    signs = torch.randn(4000, generator=generator).sign()
    u = torch.rand(4000, generator=generator)
    spread = []
    for one in (plain, density):
        shares = one.drawn(u)
        balance = one.balance(shares)
        size = process.snr(process.at(shares)).pow(0.15)
        spread.append(float(((1.0 if balance is None else balance) * size * signs).std()))
    assert spread[1] < 0.9 * spread[0]


BAD: dict[str, tuple[Any, str]] = {
    "unknown": (lambda: Timesteps("late"), r"Timesteps\(rule='late'\): use one of 'uniform', 'snr', 'threshold', or"),
    "gamma": (lambda: Timesteps("snr", gamma=0), "gamma=0"),
    "threshold": (lambda: Timesteps("threshold", threshold=1), "must be in"),
    "measured": (lambda: Timesteps("threshold", importance=True), "leave out importance"),
    "negative": (lambda: Timesteps(lambda t: -t), "1000 finite numbers of at least 0"),
    "zero": (lambda: Timesteps(lambda t: 0 * t), "one above 0"),
    "nan": (lambda: Timesteps(lambda t: t / 0 * 0), "finite"),
    "shape": (lambda: Timesteps(lambda t: t[:3]), r"shape \(3,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_choices_are_refused(case: str) -> None:
    make, message = BAD[case]
    with pytest.raises(InputsError, match=message):
        make().density(PROCESSES["epsilon"], asked)


# ---- in the loss, and in prune() ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return PIPELINES["ddpm"].around(model("ddpm"))  # 50 steps


def test_calibration_sees_the_times_asked_for(pipeline: Any) -> None:
    for rule, low, high in ((lambda t: (t < 10).float(), 0, 9), (lambda t: (t >= 40).float(), 40, 49)):
        batches, loss = fxprune.calibration(pipeline, 8, timesteps=Timesteps(rule))
        times = torch.cat([b["timestep"] for b in batches])
        assert low <= int(times.min()) <= int(times.max()) <= high
        assert len(set(times.tolist())) > 4
        plain = [{k: v for k, v in b.items() if k not in ("timestep", "weights")} for b in batches]
        assert loss(pipeline.unet, plain[0]) != fxprune.calibration(pipeline, 8)[1](pipeline.unet, plain[0])


def test_given_times_are_weighted(pipeline: Any) -> None:
    images, times = torch.rand(2, 3, 16, 16), torch.tensor([5, 45])
    uniform = fxprune.calibration(pipeline, 2)[1]
    early = fxprune.calibration(pipeline, 2, timesteps=Timesteps(lambda t: (t < 25).float()))[1]
    batch = {"images": images, "timestep": times, "noise": torch.randn(2, 3, 16, 16)}
    parts = [uniform(pipeline.unet, {k: v[i : i + 1] for k, v in batch.items()}) for i in (0, 1)]
    torch.testing.assert_close(uniform(pipeline.unet, batch), sum(parts) / 2)
    torch.testing.assert_close(early(pipeline.unet, batch), parts[0])  # weight 2, and 0
    torch.testing.assert_close(uniform(pipeline.unet, batch | {"weights": torch.tensor([0.0, 3.0])}), parts[1] * 1.5)


def test_the_threshold_measures_the_model_at_hand(pipeline: Any) -> None:
    """A noise prediction that is right only for much noise: its loss falls with time, and late times are left out."""

    class Knows(torch.nn.Module):
        def __init__(self, net: Any) -> None:
            super().__init__()
            self.net, self.config = net, net.config
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, sample: Tensor, timestep: Tensor, **_: Any) -> Any:
            return (sample * (timestep > 25).reshape(-1, 1, 1, 1) * self.scale,)

    adapter = find_adapter(pipeline)
    task = adapter.task(pipeline.unet)  # type: ignore[attr-defined]
    noising = VariancePreserving({"num_train_timesteps": 50, "beta_end": 0.5})
    batches = task.calibration(Knows(pipeline.unet), noising, 8, 0, False, Timesteps("threshold", threshold=0.6))
    assert int(torch.cat([b["timestep"] for b in batches]).max()) <= 27


@pytest.mark.parametrize("rule", ["uniform", "snr", Timesteps("threshold"), Timesteps(lambda t: 1.0 / (1 + t))])
def test_prune_takes_timesteps_and_repeats(pipeline: Any, rule: Any) -> None:
    plans = [
        fxprune.report(
            fxprune.prune(pipeline, "taylor", 0.4, timesteps=rule, samples=4, progress=False, verify=False)
        ).plan
        for _ in range(2)
    ]
    assert plans[0] == plans[1]
    assert abs(plans[0].achieved - 0.4) < 0.01
    default = fxprune.report(fxprune.prune(pipeline, "taylor", 0.4, samples=4, progress=False, verify=False)).plan
    # The untrained model is about as wrong at all times, so that the threshold leaves none out.
    assert (default.removed == plans[0].removed) == (rule in ("uniform", Timesteps("threshold")))


def test_score_takes_what_calibration_gives(pipeline: Any) -> None:
    graph = fxprune.trace(pipeline.unet)
    data, loss = fxprune.calibration(pipeline, 4, timesteps="snr")
    scores = fxprune.score(graph, pipeline.unet, "taylor", data=data, loss=loss)
    pruned = fxprune.prune(pipeline, "taylor", 0.4, timesteps="snr", samples=4, progress=False, verify=False)
    assert fxprune.plan(graph, scores, 0.4).removed == fxprune.report(pruned).plan.removed


def test_importance_draws_earlier_times_for_the_loss_and_weighs_them(pipeline: Any) -> None:
    """The losses of calibration and training are means over draws that weigh as `balance` says."""
    often = Timesteps(importance=True)
    batches, loss = fxprune.calibration(pipeline, 8, timesteps=often)
    noising = find_adapter(pipeline).process(pipeline)
    assert noising is not None
    density = often.density(noising, asked)
    for batch in batches:
        torch.testing.assert_close(batch["weights"], density.balance(noising.shares(batch["timestep"])))
    times = torch.cat([b["timestep"] for b in batches])
    plain = torch.cat([b["timestep"] for b in fxprune.calibration(pipeline, 8)[0]])
    assert float(times.float().mean()) < float(plain.float().mean())
    one = {k: v[:1] if isinstance(v, Tensor) else v for k, v in batches[0].items()}
    even = {**one, "weights": None}
    torch.testing.assert_close(loss(pipeline.unet, one), loss(pipeline.unet, even) * one["weights"][0])
    with pytest.raises(InputsError, match="a batch brings its own timestep"):
        loss(pipeline.unet, {"images": torch.rand(2, 3, 16, 16), "timestep": torch.tensor([5, 45])})


def test_training_draws_and_weighs_alike_in_the_loss_and_in_the_teacher(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxprune.training import run

    made: list[Any] = []
    teacher = run.Teacher
    monkeypatch.setattr(run, "Teacher", lambda *given: made.append(teacher(*given)) or made[-1])
    often = Timesteps(importance=True)
    given: dict[str, Any] = {"data": [torch.rand(4, 3, 16, 16)], "steps": 1, "progress": False, "verify": False}
    fxprune.prune(pipeline, "magnitude", 0.3, timesteps=often, **given)
    noising = find_adapter(pipeline).process(pipeline)
    assert noising is not None
    times = torch.tensor([0, 20, 49])
    torch.testing.assert_close(made[0].weighing(times), often.density(noising, asked).balance(noising.shares(times)))
    fxprune.prune(pipeline, "magnitude", 0.3, **given)
    assert made[1].weighing is None


def test_times_beside_a_loss_of_ones_own_are_refused(pipeline: Any) -> None:
    data, loss = fxprune.calibration(pipeline, 2)
    own: dict[str, Any] = {"data": data, "loss": loss, "timesteps": "snr"}
    plan = fxprune.family(pipeline, [0.3], criterion="magnitude", progress=False).plans[0]
    calls: list[Callable[[], Any]] = [
        lambda: fxprune.prune(pipeline, "taylor", 0.3, **own),
        lambda: fxprune.prune(pipeline, "magnitude", 0.3, steps=1, **own),
        lambda: fxprune.apply(pipeline, plan, criterion="obs", **own),
        lambda: fxprune.family(pipeline, [0.3], **own),
        lambda: fxprune.sensitivity(pipeline, "taylor", **own),
        lambda: fxprune.search(pipeline, lambda _: 1.0, {"params": 0.5}, **own),
        lambda: fxprune.Pruner(pipeline.unet, "one_shot", "taylor", 0.3, steps=1, loss=loss, timesteps="snr"),
    ]
    for call in calls:
        with pytest.raises(InputsError, match=r"timesteps='snr' says .* brings loss=.*: leave one of them out"):
            call()
    with pytest.raises(InputsError, match='timesteps= to correct what stays: pass criterion="obs"'):
        fxprune.apply(pipeline, plan, timesteps="snr")


def test_studies_and_replayed_plans_see_the_times_asked_for(pipeline: Any) -> None:
    early = Timesteps(lambda t: (t < 25).float())
    given: dict[str, Any] = {"samples": 4, "progress": False}
    asked: dict[str, Any] = {**given, "timesteps": early}
    data, loss = fxprune.calibration(pipeline, 4, timesteps=early)
    same: dict[str, Any] = {"data": data, "loss": loss, "progress": False}

    def gone(**how: Any) -> Any:
        return fxprune.family(pipeline, [0.4], criterion="taylor", **how).plans[0].removed

    assert gone(**asked) == gone(**same) != gone(**given)  # so what follows would differ, were times not seen

    def tried(**how: Any) -> Any:
        how = {"criterion": "taylor", "trials": 1, "out": None, **how}
        return fxprune.search(pipeline, lambda _: 1.0, {"params": 0.6}, **how).best.removed

    assert tried(**asked) == tried(**same)

    def harm(**how: Any) -> Any:
        found = fxprune.sensitivity(pipeline, "magnitude", shares=[0.5], ignore="*block*", **how)
        return [c.values for c in found.curves]

    assert harm(**asked) == harm(**same)
    plan = fxprune.family(pipeline, [0.4], criterion="magnitude", progress=False).plans[0]

    def corrected(**how: Any) -> Tensor:
        weight: Tensor = fxprune.apply(pipeline, plan, criterion="obs", **how).unet.conv_out.weight
        return weight

    assert torch.equal(corrected(**asked), corrected(**same))


def test_a_pruner_scores_by_the_times_asked_for(pipeline: Any) -> None:
    def removed(**how: Any) -> Any:
        net = copy.deepcopy(pipeline.unet)
        batch = {"images": torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
        pruner = fxprune.Pruner(net, "one_shot", "taylor", 0.4, steps=1, data=[batch], **how)
        pruner.step()
        return fxprune.report(pruner.finish(verify=False)).plan.removed

    early = Timesteps(lambda t: (t < 100).float())  # a bare UNet is taken to have 1000 steps
    loss = find_adapter(pipeline.unet).seeing(early).loss_of(pipeline.unet, 0)
    assert removed(timesteps=early) == removed(loss=loss) != removed()


def test_models_without_times_say_so() -> None:
    with pytest.raises(InputsError, match=r"timesteps='snr' is for diffusion models, which GenericAdapter does not"):
        fxprune.prune(torch.nn.Linear(2, 2), "taylor", timesteps="snr", example_inputs=torch.ones(1, 2))
    with pytest.raises(InputsError, match="AutoencoderKL has no timesteps: leave timesteps= out"):
        fxprune.calibration(model("vae"), timesteps="snr")
    with pytest.raises(InputsError, match="has no loss for Linear: bring both"):
        fxprune.calibration(torch.nn.Linear(2, 2))
