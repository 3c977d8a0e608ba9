"""prune() with training: it ends as it should, goes on where it stopped, and comes out alike on several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import training_runs
from accelerate.state import AcceleratorState, is_initialized
from accelerate.tracking import GeneralTracker
from torch import Tensor, nn
from training_runs import IMAGES, Net, Stopping, die, loader, loss, net, noisy, run

import fxprune
from fxprune import Distillation, Training


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Any:
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["soft", "iterative", "group_lasso", "one_shot"])
def test_a_run_ends_with_a_small_trained_model(scheduler: str) -> None:
    model = net().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    small = run(Training(30, after=10, learning_rate=1e-2, distill=None), scheduler, model=model)
    assert type(small) is Net
    assert not small.training
    assert size(small) == pytest.approx(0.6 * size(model), rel=0.05)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    history = fxprune.report(small).history
    assert history is not None
    assert len(history) == 40
    assert fxprune.report(small).plan.criterion == "taylor"
    losses = history.column("loss")
    assert losses[-5:].mean() < 0.5 * losses[:5].mean()
    assert all(c.ok for c in fxprune.report(small).checks)


def test_a_cut_before_the_training_may_take_shares_by_name() -> None:
    model = net()
    small = run(Training(2), "one_shot", model=model, ratio=None, ratios={"stem": 0.5})
    assert small.stem.out_channels == model.stem.out_channels // 2
    with pytest.raises(fxprune.InputsError, match=r"ratios=.* goes with the scheduler one_shot only"):
        run(Training(30), "soft", model=model, ratio=None, ratios={"stem": 0.5})


def test_a_run_ends_at_a_number_of_parameters() -> None:
    model = net()
    target = round(0.7 * size(model))
    given = {"data": loader(), "example_inputs": IMAGES[:2], "loss": loss, "progress": False}
    small = fxprune.prune(model, "taylor", target=target, scheduler="soft", training=Training(20), **given)
    assert 0.6 * size(model) < size(small) <= target


def test_inplace_prunes_the_model_itself() -> None:
    model = net()
    conv = model.conv
    assert run(Training(20, after=1), model=model, inplace=True) is model
    assert model.conv is conv
    assert conv.out_channels < 24
    assert len(fxprune.report(model).history or ()) == 21


def test_a_pipeline_comes_back_as_a_pipeline() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler
    from saved_nets import tiny_unet

    torch.manual_seed(0)
    pipeline = DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler(num_train_timesteps=50))
    shape = (pipeline.unet.config.in_channels, pipeline.unet.config.sample_size, pipeline.unet.config.sample_size)
    data = [torch.randn(2, *shape)]
    small = fxprune.prune(pipeline, "magnitude", 0.3, scheduler="soft", steps=20, data=data, progress=False)
    assert isinstance(small, DDPMPipeline)
    assert size(small.unet) < 0.75 * size(pipeline.unet)
    losses = fxprune.report(small).history.column("loss")
    assert len(set(losses)) == 20  # one and the same batch: noise and times are drawn anew at each step


def test_averages_are_what_comes_back() -> None:
    """A quick average is the weights themselves, a slow one is not."""
    kept, averaged, fast = (
        run(Training(2, learning_rate=1e-2, ema_decay=decay), "one_shot") for decay in (None, 0.9, 0.0)
    )
    assert same(kept, fast)
    assert not same(kept, averaged)


def test_accumulated_batches_are_one_large_batch() -> None:
    class Plain(Net):
        def __init__(self) -> None:
            super().__init__()
            self.batch, self.drop = nn.Identity(), nn.Identity()

    def fresh() -> Net:
        torch.manual_seed(0)
        return Plain()

    sgd = {"optimizer": lambda p: torch.optim.SGD(p, 0.1), "clip": None}
    split = run(Training(20, accumulate=4, **sgd), "iterative", loss, model=fresh(), data=loader(4, False), ratio=0.0)
    large = run(Training(20, **sgd), "iterative", loss, model=fresh(), data=loader(16, False), ratio=0.0)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(split.parameters(), large.parameters(), strict=True))


def test_the_learning_rate_rises_and_falls() -> None:
    seen: list[float] = []

    class Watched(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    run(Training(20, after=4, warmup=4, anneal=True, optimizer=lambda p: Watched(p, 0.1)))
    assert seen[:3] == pytest.approx([0.1 * Training(20, 4, warmup=4, anneal=True).rate(t) for t in range(3)])
    assert seen[0] < seen[3] > seen[-1]
    assert len(seen) == 24


def test_mixed_precision_computes_in_bfloat16() -> None:
    types = set()

    def watched(model: nn.Module, batch: Tensor) -> Tensor:
        if model.training:
            types.add(model(batch).dtype)
        return noisy(model, batch)

    run(Training(20))  # another precision before, in the same process
    small = run(Training(20, mixed_precision="bf16"), how=watched)
    assert types == {torch.bfloat16}
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert "forward" not in vars(small)


def test_trackers_hear_of_every_step() -> None:
    heard: list[tuple[int, dict[str, Any]]] = []

    class Tracker(GeneralTracker):
        name, requires_logging_directory = "list", False

        @property
        def tracker(self) -> Any:
            return heard

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            heard.append((0, values))

        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            heard.append((step or 0, values))

    run(Training(20, after=1, log_with=Tracker()))
    assert heard[0][1]["steps"] == "20"
    assert [step for step, _ in heard[1:]] == list(range(1, 22))
    assert {"loss", "lr", "remaining", "undecided", "energy", "price"} <= heard[1][1].keys()


# ---- distillation ---------------------------------------------------------------------------------------------------


def test_the_dense_model_teaches_its_own_outputs() -> None:
    """From distillation alone, the small model's outputs come near the dense one's."""
    dense = net().eval()

    def silent(model: nn.Module, batch: Tensor) -> Tensor:
        return 0 * model(batch).sum()

    def gap(small: nn.Module) -> float:
        with torch.no_grad():
            return float((small.eval()(IMAGES) - dense(IMAGES)).square().mean())

    cut = fxprune.prune(dense, "magnitude", 0.4, example_inputs=IMAGES[:2], progress=False)
    training = Training(60, learning_rate=5e-3, distill=Distillation(output=1.0, features=1.0))
    taught = run(training, how=silent, model=dense, criterion="magnitude")
    assert gap(taught) < 0.5 * gap(cut)


def test_distillation_does_not_jump_at_the_hand_off() -> None:
    """Outputs and features under binary masks and after the cut: the same term."""
    from fxprune.training.distillation import Teacher

    dense = net().eval()
    pruner = fxprune.Pruner(
        net().eval(), "one_shot", "magnitude", 0.4, steps=1, example_inputs=IMAGES[:2], exact_norms=True
    )
    layers = ("stem", "norm", "conv", "blocks.0", "layer", "head")
    teacher = Teacher(dense, pruner.graph, Distillation(features=1.0, layers=layers))
    untouched = float(teacher.loss(pruner.net, lambda: loss(pruner.net, IMAGES)) - loss(pruner.net, IMAGES))
    assert untouched == 0
    pruner.step()
    teacher.follow(pruner.mask)
    masked = float(teacher.loss(pruner.net, lambda: loss(pruner.net, IMAGES)).detach())
    small = pruner.finish()
    teacher.cut(pruner.flow.plan.kept(pruner.graph))
    cut = float(teacher.loss(small, lambda: loss(small, IMAGES)).detach())
    assert cut == pytest.approx(masked, rel=1e-5)
    assert cut > float(loss(small, IMAGES).detach()) + 1e-3
    assert all(not m._forward_hooks for m in small.modules())


@pytest.mark.parametrize(
    ("distill", "how", "message"),
    [
        (Distillation(features=1.0, layers=("nowhere",)), noisy, "'nowhere' of this Net is not there"),
        (
            Distillation(),
            lambda m, b: m.head(b.mean((2, 3)) @ torch.ones(3, 16)).mean(),
            "does not call the Net itself",
        ),
    ],
)
def test_what_cannot_be_distilled(distill: Distillation, how: Any, message: str) -> None:
    with pytest.raises(fxprune.InputsError, match=message):
        run(Training(20, distill=distill), how=how, criterion="magnitude")


# ---- stopping and going on ------------------------------------------------------------------------------------------


class Stop(Exception):
    """Somebody pulls the plug."""


def pull() -> None:
    raise Stop


@pytest.mark.parametrize("optimizer", [None, "soap"])
@pytest.mark.parametrize(("scheduler", "at"), [("soft", 12), ("soft", 27), ("one_shot", 12)])
@pytest.mark.filterwarnings("ignore:SOAP begins anew")
def test_a_stopped_run_goes_on_bit_for_bit(scheduler: str, at: int, optimizer: str | None, tmp_path: Path) -> None:
    """While the masks move, and after the hand-off; averages, noise, dropout and the order of the data included."""
    recipe = {"ema_decay": 0.9, "warmup": 5, "anneal": True, "distill": Distillation()}
    training = Training(24, after=6, optimizer=optimizer, **recipe)
    want = run(training, scheduler)
    kept = Training(**{**vars(training), "checkpoint_dir": tmp_path, "checkpoint_every": 5})
    with pytest.raises(Stop):
        run(kept, scheduler, Stopping(at, pull))
    assert max(p.name for p in tmp_path.iterdir()) == f"step-{(at - 1) // 5 * 5:08d}"
    again = Stopping(31 - (at - 1) // 5 * 5, pull)  # no step more than those that are left
    got = run(kept, scheduler, again)
    assert same(want, got)
    assert again.left == 1
    for a, b in zip(fxprune.report(want).history, fxprune.report(got).history, strict=True):
        assert a == b


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, training_runs.__file__, "killed", tmp_path], env=environment(), check=False)
    assert child.returncode == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000020", "step-00000025"]
    training = Training(32, after=8, ema_decay=0.9)
    kept = Training(**{**vars(training), "checkpoint_dir": tmp_path, "checkpoint_every": 5})
    counted = Stopping(100, die)
    assert same(run(training, how=noisy), run(kept, how=counted))
    assert counted.left == 100 - 15


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    training = Training(20, after=2, checkpoint_dir=tmp_path)
    want = run(training, how=Stopping(100, pull))
    assert same(want, run(training, how=Stopping(1, pull)))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    run(Training(20, checkpoint_dir=tmp_path))
    with pytest.raises(fxprune.SaveError, match=r"is of another run: learning_rate was None and now is 0\.1"):
        run(Training(20, checkpoint_dir=tmp_path, learning_rate=0.1))
    file = max(tmp_path.glob("*/shared.pt"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(fxprune.SaveError, match=r"shared\.pt is damaged or missing"):
        run(Training(20, checkpoint_dir=tmp_path))


def test_what_a_checkpoint_cannot_hold_is_told_at_the_first_step(tmp_path: Path) -> None:
    class Batch:
        images = IMAGES[:8]

    with pytest.raises(fxprune.SaveError, match="a batch is a Batch, which cannot be written without pickle"):
        run(Training(20, checkpoint_dir=tmp_path), how=lambda m, b: loss(m, b.images), data=[Batch()])


# ---- several processes ----------------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """On as many threads as here: with another number, sums are of another order."""
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return {**os.environ, **threads, "ACCELERATE_USE_CPU": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """The same plan, losses and weights from two halves of a batch; and FSDP is refused in words."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    child = subprocess.run(
        [*launch, training_runs.__file__, "two", tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    model = net()
    model.batch, model.drop = nn.Identity(), nn.Identity()
    one = run(Training(30, after=2), how=loss, model=model, data=loader(16, shuffle=False))
    assert json.loads(told[0]["plan"]) == json.loads(fxprune.report(one).plan.to_json())
    assert told[0]["loss"] == pytest.approx(fxprune.report(one).history.column("loss").tolist(), rel=1e-3)
    assert told[0]["weights"] == pytest.approx(float(sum(p.double().sum() for p in one.parameters())), abs=1e-2)
    assert "are sharded (FSDP)" in told[0]["trace"]
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "step-00000032").iterdir()) == [
        "process-0.pt",
        "process-1.pt",
        "shared.pt",
    ]


# ---- data -----------------------------------------------------------------------------------------------------------


def test_a_generator_runs_dry() -> None:
    with pytest.raises(fxprune.InputsError, match="no batch left after 1 epochs"):
        run(Training(20), data=(IMAGES[:8] for _ in range(5)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": None}, "data is missing: steps= trains the model"),
        ({"data": IMAGES}, "data is one Tensor"),
        ({"how": None}, "steps= trains the model: pass loss="),
        ({"ratios": {"conv*": 0.5}}, r"ratios=.* goes with the scheduler one_shot only"),
        ({"attention": "both"}, "attention='both' goes with the scheduler one_shot only"),
        ({"how": lambda m, b: m(b)}, r"returned a tensor of shape \(8, 5\); return one scalar"),
        ({"how": lambda m, b: m(b).sum() * float("nan")}, "the loss of step 1 is nan; lower the learning rate"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(fxprune.InputsError, match=message):
        run(Training(20), **{"how": noisy, **options})
    assert not is_initialized()  # the next call may choose another precision


def test_steps_are_needed_or_given_once() -> None:
    with pytest.raises(fxprune.InputsError, match="scheduler='soft' prunes while the model trains: pass steps="):
        fxprune.prune(net(), "magnitude", 0.4, scheduler="soft")
    with pytest.raises(fxprune.InputsError, match="both set the steps"):
        run(Training(20), steps=20)
    with pytest.raises(fxprune.InputsError, match="accumulate=0 must be at least 1"):
        Training(20, accumulate=0)


def test_a_failed_run_leaves_no_masks() -> None:
    model = net()
    with pytest.raises(Stop):
        run(Training(20), how=Stopping(5, pull), model=model, inplace=True)
    assert not any("_fxprune" in vars(m) for m in model.modules())


# ---- the picture ----------------------------------------------------------------------------------------------------


def test_a_run_is_drawn(tmp_path: Path) -> None:
    small = run(Training(20, after=5, picture=tmp_path / "run.png"))
    told = fxprune.report(small)
    assert told.picture == str(tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    means = told.history.means
    assert means.shape == (20, len(told.history.groups))
    assert means[0].min() > 0.8
    assert means[-1].min() < 0.7
    pruner = fxprune.Pruner(net(), "soft", "magnitude", 0.4, steps=20, example_inputs=IMAGES[:2])
    with pytest.raises(fxprune.InputsError, match="has taken no step yet"):
        pruner.picture(tmp_path / "none.png")
