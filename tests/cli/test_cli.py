"""The command line, on small local folders."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from saved_nets import Plain, tiny_unet
from typer.testing import CliRunner

import fxprune
from fxprune.cli import app
from fxprune.saving.save import load, save


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers `pipeline` and a diffusers `model`, with random weights."""
    from diffusers import DDPMPipeline, DDPMScheduler

    root = tmp_path_factory.mktemp("stock")
    torch.manual_seed(0)
    unet = tiny_unet()
    unet.save_pretrained(root / "model")
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(num_train_timesteps=50)).save_pretrained(root / "pipeline")
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, stock: Path) -> Path:
    """The model, pruned by the command line."""
    out = tmp_path_factory.mktemp("small") / "out"
    run("prune", stock / "model", "-o", out, "--ratio", 0.3, "--criterion", "magnitude", "--quiet")
    return out


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def run(*args: object) -> str:
    """What a command that succeeds prints, white space folded."""
    result = call(*args)
    assert result.exit_code == 0, result.output + str(result.exception)
    return re.sub(r"\s+", " ", result.stdout)


def test_prune_a_model(small: Path) -> None:
    again = load(small)
    assert type(again).__name__ == "UNet2DModel"
    plan = fxprune.report(again).plan
    assert plan.criterion == "magnitude"
    assert abs(plan.achieved - 0.3) < 0.01
    assert sum(p.numel() for p in again.parameters()) == plan.costs["params"][1]


def test_prune_a_pipeline_with_the_defaults(tmp_path: Path, stock: Path) -> None:
    shown = run("prune", stock / "pipeline", "--output", tmp_path / "out", "--samples", 2, "--seed", 3, "-q")
    assert "UNet2DModel: 40.0% of params go (asked 40.0%, by gradflow)" in shown
    assert re.search(r"params 176,849 106,\d+ -(39.9|40.0|40.1)%", shown)
    assert "masked = dense: relative error" in shown
    assert f"saved in {tmp_path / 'out'}" in shown
    pipeline = load(tmp_path / "out")
    assert type(pipeline).__name__ == "DDPMPipeline"
    assert pipeline(num_inference_steps=1, output_type="np").images.shape == (1, 8, 8, 1)


def test_options_reach_prune(tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def spy(model: Any, *args: Any, **kwargs: Any) -> Any:
        given.update(kwargs, args=args)
        raise fxprune.BudgetError("enough")

    monkeypatch.setattr(sys.modules["fxprune.api"], "prune", spy)
    options = """--ratio 0.2 --criterion taylor --of macs --scheduler one_shot --attention head_dim --ignore conv_in
        --ignore mid* --round-to 2 --max-ratio 0.5 --exact-norms --scope local --samples 4 --seed 5 --no-verify
        --strict --quiet --target 9e4 --group-ratio mid*=0.1 --group-ratio x=0 --min-width 3 --normalize max
        --granularity both --shape stock --nearest"""
    assert call("prune", stock / "model", "-o", tmp_path / "out", *options.split()).exit_code == 1
    assert given == {
        "args": ("taylor", 0.2),
        "shape": "stock",
        "nearest": True,
        "of": "macs",
        "target": 90_000,
        "ratios": {"mid*": 0.1, "x": 0.0},
        "timesteps": None,
        "scheduler": "one_shot",
        "training": None,
        "data": None,
        "attention": "head_dim",
        "ignore": ("conv_in", "mid*"),
        "round_to": 2,
        "min_width": 3,
        "max_ratio": 0.5,
        "exact_norms": True,
        "scope": "local",
        "normalize": "max",
        "legal_for": None,
        "max_batches": None,
        "granularity": "both",
        "samples": 4,
        "seed": 5,
        "verify": False,
        "strict": True,
        "progress": False,
    }


def test_round_to_may_be_auto(tmp_path: Path, stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def spy(model: Any, *args: Any, **kwargs: Any) -> Any:
        given.update(kwargs)
        raise fxprune.BudgetError("enough")

    monkeypatch.setattr(sys.modules["fxprune.api"], "prune", spy)
    call("prune", stock / "model", "-o", tmp_path / "out", "--round-to", "auto", "--of", "latency")
    assert (given["round_to"], given["of"]) == ("auto", "latency")


def test_inspect_a_stock_folder(stock: Path) -> None:
    shown = run("inspect", stock / "pipeline", "--explain", "conv_out")
    assert re.search(r"UNet2DModel: 176,849 parameters, \d+ groups of \d+ channels", shown)
    assert "conv_in.weight:0" in shown
    assert "What cannot be pruned, or only in part" in shown
    assert "conv_out.weight axis 0" in shown


def test_inspect_shows_all_groups_if_asked(stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.cli.inspect.SHOWN", 3)
    assert re.search(r"\.\.\. and \d+ more; --all shows them", run("inspect", stock / "model"))
    assert "more; --all" not in run("inspect", stock / "model", "--all")


def test_inspect_shows_the_saved_plan(tmp_path: Path, small: Path) -> None:
    save(load(small), tmp_path / "m", metrics={"loss": 0.25})
    shown = run("inspect", tmp_path / "m")
    assert re.search(r"UNet2DModel, saved by .*fxprune .* torch", shown)
    assert re.search(r"30.0% of params go \(asked 30.0%, by magnitude\)", shown)
    assert "loss 0.25" in shown
    assert re.search(r"UNet2DModel: 123,\d+ parameters", shown)


def test_inspect_a_plain_module_shows_what_the_folder_says(tmp_path: Path) -> None:
    save(Plain(), tmp_path / "m")
    shown = run("inspect", tmp_path / "m")
    assert "Plain, saved by" in shown
    assert "not pruned" in shown
    assert "cannot be built from the folder" in shown


def test_list_names_package_and_purpose() -> None:
    shown = run("list")
    for name in (
        "gradflow fxprune (|θ g| + T |θ (H g)|)^1.25",
        "one_shot fxprune Score once, cut to the final ratio",
        "ddpm fxprune `UNet2DModel`",
    ):
        assert name in shown
    assert [shown.index(kind) for kind in ("criteria", "schedulers", "adapters")] == sorted(
        shown.index(kind) for kind in ("criteria", "schedulers", "adapters")
    )


def test_demo_runs_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("fxprune.demo.run")
    module.main = lambda **given: print(given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fxprune.demo.run", module)
    assert run("demo") == "{} "
    given = {"output": Path("x"), "ratio": 0.2, "steps": 5}
    assert run("demo", "-o", "x", "--ratio", 0.2, "--steps", 5) == f"{given} "


def test_demo_takes_what_the_demo_takes() -> None:
    from fxprune.cli.demo import demo
    from fxprune.demo.run import main

    assert list(inspect.signature(demo).parameters) == list(inspect.signature(main).parameters)


def test_demo_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")

    monkeypatch.setitem(sys.modules, "fxprune.demo.run", Missing("fxprune.demo.run"))
    result = call("demo")
    assert result.exit_code == 1
    assert 'the demo needs sklearn: pip install "fxprune[demo]"' in result.stderr


def _damaged(root: Path) -> Path:
    (root / "bad").mkdir()
    (root / "bad" / "fxprune.json").write_text("{")
    return root / "bad"


def _odd(root: Path) -> Path:
    (root / "odd").mkdir()
    (root / "odd" / "config.json").write_text(json.dumps({"_class_name": "BertModel"}))
    return root / "odd"


def test_budgets_of_every_kind(stock: Path, tmp_path: Path) -> None:
    name = "mid_block.resnets.0.conv1"
    common = ("prune", stock / "model", "--criterion", "magnitude", "--quiet", "-o", tmp_path / "out")
    run(*common, "--target", 60_000, "--group-ratio", f"{name}=0.5", "--min-width", 2, "--scope", "isomorphic")
    small = load(tmp_path / "out")
    plan = fxprune.report(small).plan
    assert sum(p.numel() for p in small.parameters()) == pytest.approx(60_000, rel=0.01)
    assert len(plan.removed[f"{name}.weight:0"]) == pytest.approx(plan.sizes[f"{name}.weight:0"] / 2, abs=2)
    assert min(n - len(plan.removed.get(g, ())) for g, n in plan.sizes.items()) >= 2


def test_sensitivity(stock: Path, tmp_path: Path) -> None:
    files = ("--csv", tmp_path / "t.csv", "--plot", tmp_path / "t.png")
    shown = run("sensitivity", stock / "pipeline", "--share", 0.5, "--samples", 1, "--quiet", *files)
    assert "Sensitivity of UNet2DModel: loss" in shown
    assert (tmp_path / "t.csv").read_text().startswith("group,with,channels,share,loss\nconv_in.weight:0,")
    assert (tmp_path / "t.png").stat().st_size > 1000


def _taken(root: Path) -> Path:
    (root / "taken").mkdir()
    (root / "taken" / "mine.txt").touch()
    return root / "taken"


REFUSED: dict[str, tuple[Callable[[Path, Path], list[object]], str]] = {
    "no folder": (lambda r, s: ["inspect", r / "none"], "SaveError: there is no folder"),
    "empty folder": (lambda r, s: ["inspect", r], "is neither a diffusers pipeline (model_index.json), nor"),
    "damaged": (lambda r, s: ["inspect", _damaged(r)], "cannot be read: JSONDecodeError"),
    "no diffusers class": (lambda r, s: ["inspect", _odd(r)], "names 'BertModel', which is no model of diffusers"),
    "tensor unknown": (lambda r, s: ["inspect", s / "model", "--explain", "x"], "PlanError: this UNet2DModel has no"),
    "ratio": (lambda r, s: ["prune", s / "model", "-o", r / "o", "--ratio", 1.5], "BudgetError: ratio=1.5 is outside"),
    "shares": (lambda r, s: ["prune", s / "model", "-o", r / "o", "--group-ratio", "x"], "--group-ratio x is not of"),
    "two budgets": (
        lambda r, s: ["prune", s / "model", "-o", r / "o", "--ratio", 0.2, "--target", 9], "pass one of them"),
    "measure": (lambda r, s: ["prune", s / "model", "-o", r / "o", "--criterion=random", "--of=x"], "of='x' is"),
    "criterion": (lambda r, s: ["prune", s / "model", "-o", r / "o", "--criterion", "gradfow"], "mean 'gradflow'?"),
    "device": (lambda r, s: ["prune", s / "model", "-o", r / "o", "--device", "x"], "InputsError: --device x cannot"),
    "output taken": (lambda r, s: ["prune", s / "model", "-o", _taken(r)], "(mine.txt), and they would be lost"),
    "output is the input": (lambda r, s: ["prune", s / "model", "-o", s / "model"], "and they would be lost"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_error_is_one_red_paragraph(tmp_path: Path, stock: Path, case: str) -> None:
    make, message = REFUSED[case]
    before = {p: p.read_bytes() for p in stock.rglob("*") if p.is_file()}
    result = call(*make(tmp_path, stock))
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith(("SaveError", "Pl", "Bud", "Crit", "Inp"))
    assert "Traceback" not in result.output
    assert not (tmp_path / "o").exists()
    assert before == {p: p.read_bytes() for p in stock.rglob("*") if p.is_file()}


def test_help_explains_itself() -> None:
    shown = run("--help")
    assert all(command in shown for command in ("prune", "inspect", "sensitivity", "list", "demo"))
    for command in ("prune", "inspect", "sensitivity", "list", "demo"):
        assert "Usage" in run(command, "--help")
    assert run("--version") == f"fxprune {fxprune.__version__} "
    assert call("prune", "somewhere").exit_code == 2  # --output is missing


def test_the_installed_command_works(stock: Path) -> None:
    command = shutil.which("fxprune", path=str(Path(sys.executable).parent))
    assert command, "fxprune is not installed beside this Python: run `make setup`"
    done = subprocess.run([command, "inspect", str(stock / "none")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("SaveError: there is no folder")


def pictures(folder: Path, n: int = 5) -> Path:
    from PIL import Image

    folder.mkdir()
    for k in range(n):
        Image.effect_noise((20 + k, 16), 50).save(folder / f"{k}.png")
    return folder


def test_prune_while_training_on_a_folder_of_images(stock: Path, tmp_path: Path) -> None:
    data, out, dense = pictures(tmp_path / "data"), tmp_path / "out", fxprune.open_model(stock / "pipeline")
    options = ("--ratio", 0.3, "--criterion", "magnitude", "--quiet", "--batch", 2, "--picture", tmp_path / "run.png")
    printed = run(
        "prune", stock / "pipeline", "-o", out, "--scheduler", "soft", "--steps", 20, "--data", data, *options
    )
    assert "30." in printed
    small = load(out).unet
    assert small.num_parameters() < 0.75 * dense.unet.num_parameters()
    assert not torch.equal(small.conv_out.bias, dense.unet.conv_out.bias)  # it has trained
    assert (tmp_path / "run.png").exists()


def test_steps_and_data_go_together(stock: Path, tmp_path: Path) -> None:
    result = call("prune", stock / "model", "-o", tmp_path / "out", "--steps", 20)
    assert result.exit_code == 1
    assert "--steps and --data go together" in re.sub(r"\s+", " ", result.output)
