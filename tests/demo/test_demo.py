"""The demo in small, and the model and the judge that it ships with."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, is_initialized
from PIL import Image
from rich.console import Console
from safetensors import safe_open

import fxprune
from fxprune.demo import digits
from fxprune.demo.asked import Wish, granted
from fxprune.demo.digits import CHECKPOINT, SampleOptions
from fxprune.demo.measure import count_macs, ssim
from fxprune.demo.run import DemoOptions, main, run
from fxprune.demo.training import TrainOptions

QUICK = {"samples": 4, "sampler_steps": 2, "latency_batch": 2, "others": ("macs",)}
SMALL = DemoOptions(training=TrainOptions(steps=2, batch_size=16), **QUICK)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    AcceleratorState._reset_state()
    run(folder, SMALL, Console(quiet=True))
    assert not is_initialized()  # what trains next in this process may choose its precision
    return folder


@pytest.fixture(scope="module")
def samples() -> torch.Tensor:
    pipeline = digits.load_pipeline()
    return digits.sample(pipeline.unet, pipeline.scheduler, SampleOptions(count=256, steps=50))


def test_demo_prunes_by_forty_percent_and_measures_everything(demo: Path) -> None:
    dense, pruned, tuned = json.loads((demo / "table.json").read_text(encoding="utf-8"))["columns"]
    assert [c["name"] for c in (dense, pruned, tuned)] == ["dense", "pruned", "fine-tuned"]
    assert 1 - pruned["parameters"] / dense["parameters"] == pytest.approx(0.4, abs=0.01)
    assert tuned["parameters"] == pruned["parameters"]
    assert tuned["macs"] == pruned["macs"] < dense["macs"]
    assert dense["ssim"] == pytest.approx(1)
    assert tuned["loss"] != pruned["loss"]
    numbers = [value for c in (dense, pruned, tuned) for key, value in c.items() if key != "name"]
    assert len(numbers) == 21
    assert all(math.isfinite(value) for value in numbers)


def test_demo_reloads_the_same_model(demo: Path) -> None:
    assert json.loads((demo / "table.json").read_text(encoding="utf-8"))["reloaded_is_identical"] is True
    pipeline = fxprune.load(demo / "model")
    plan = fxprune.report(pipeline.unet).plan
    assert plan.costs["params"] == (1_001_729, pipeline.unet.num_parameters())
    assert plan.costs["macs"][1] == count_macs(pipeline.unet)  # the plan's arithmetic and PyTorch's counter agree


def test_demo_writes_table_and_picture(demo: Path) -> None:
    rows = (demo / "table.md").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "|  | dense | pruned | fine-tuned |"
    assert rows[2].startswith("| Parameters | 1,001,729 | 601,")
    assert "bit for bit" in rows[-1]
    with Image.open(demo / "samples.png") as picture:
        assert picture.width > 3 * picture.height / 2


def test_demo_says_what_speed_costs(demo: Path) -> None:
    held = json.loads((demo / "table.json").read_text(encoding="utf-8"))
    size, macs = held["asked"]
    assert (size["asked"], macs["asked"]) == ("ratio=0.4", 'ratio=0.4, of="macs"')
    assert size["loss"] == held["columns"][1]["loss"]
    assert macs["macs"] == pytest.approx(0.4, abs=0.01)
    assert macs["predicted"] == pytest.approx(1 / (1 - macs["macs"])) != size["predicted"]
    assert size["speedup"] == pytest.approx(held["columns"][0]["latency"] / held["columns"][1]["latency"])
    assert macs["speedup"] > 0
    text = (demo / "table.md").read_text(encoding="utf-8")
    assert f'| `ratio=0.4, of="macs"` | {macs["parameters"]:.1%} | 40.' in text


def test_what_cannot_go_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise fxprune.BudgetError("no", reachable=0.42)

    monkeypatch.setattr(fxprune, "prune", refuse)
    asked, unet = granted(Wish("latency", 0.6, "magnitude", 0, 2), digits.load_pipeline(), progress=False)
    assert unet is None
    assert asked.cells == ['`ratio=0.6, of="latency"`', *"––––", "cannot go: at most 42%"]


def test_demo_refuses_bad_options_before_it_works(tmp_path: Path) -> None:
    with pytest.raises(fxprune.InputsError, match="at least one step"):
        main(tmp_path / "steps", steps=0)
    with pytest.raises(fxprune.BudgetError, match=r"outside \[0, 1\)"):
        main(tmp_path / "ratio", ratio=1.5)
    with pytest.raises(fxprune.FxPruneError, match="gradflow"):
        run(tmp_path / "criterion", replace(SMALL, criterion="gradflo"), Console(quiet=True))


def test_ssim_is_one_for_equal_images_and_low_for_noise() -> None:
    images = digits.load_digits_split().held_out_images
    assert ssim(images, images) == pytest.approx(1)
    assert ssim(images, torch.randn(images.shape, generator=torch.Generator().manual_seed(0))) < 0.1


def test_shipped_weights_are_small_and_in_half_precision() -> None:
    (weights,) = CHECKPOINT.rglob("*.safetensors")
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) <= 3_000_000
    with safe_open(weights, "pt") as held:
        assert {held.get_slice(name).get_dtype() for name in held.keys()} == {"F16"}  # noqa: SIM118


def test_shipped_model_draws_all_ten_digits(samples: torch.Tensor) -> None:
    share, classes = digits.confidence_share(samples)
    assert share >= 0.8
    assert classes == 10


def test_the_seed_decides_what_is_drawn() -> None:
    pipeline = digits.load_pipeline()
    first, again, other = (
        digits.sample(pipeline.unet, pipeline.scheduler, SampleOptions(count=8, steps=2, seed=seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_classifier_knows_digits_from_noise() -> None:
    held_out = digits.load_digits_split().held_out_images
    noise = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert digits.classifier_accuracy() > 0.97
    assert digits.confidence_share(held_out)[0] > 0.85
    assert digits.confidence_share(noise)[0] < 0.02


def test_training_and_held_out_digits_are_apart() -> None:
    split = digits.load_digits_split()
    assert (len(split.train_images), len(split.held_out_images)) == (1500, 297)
    distances = torch.cdist(split.held_out_images.flatten(1), split.train_images.flatten(1))
    assert (distances > 0).all()
