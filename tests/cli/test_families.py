"""Every command on a model of every family, in small local folders; `--json` and `--config` say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import small_folders as folders
import torch
from click.testing import Result
from typer.testing import CliRunner

import fxprune
from fxprune.cli import app
from fxprune.cli.main import COMMANDS

pytest.importorskip("timm")
pytest.importorskip("transformers")

WIDE = 80  # columns that output fits


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of four families, images, and a text."""
    root = tmp_path_factory.mktemp("families")
    folders.timm_cnn(root / "timm")
    folders.llama(root / "llama")
    folders.vit(root / "vit")
    folders.ddpm(root / "ddpm")
    folders.pictures(root / "images")
    folders.text(root / "text.txt")
    net = fxprune.open_model("torchvision:squeezenet1_1", weights="random", arguments={"num_classes": 2})
    torch.save(net.state_dict(), root / "squeezenet.pth")
    return root


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args])


def run(*args: object) -> Result:
    """A command that succeeds."""
    result = call(*args)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result


def answer(*args: object) -> Any:
    """What a command says as JSON, which is all that stands on stdout."""
    return json.loads(run(*args, "--json").stdout)


MODELS: dict[str, list[object]] = {
    "timm": ["timm"],
    "torchvision": ["torchvision:squeezenet1_1", "--weights", "squeezenet.pth"],
    "llama": ["llama"],
    "vit": ["vit"],
    "ddpm": ["ddpm"],
}
DATA = {"timm": "images", "torchvision": "images", "llama": "text.txt", "vit": "images", "ddpm": "images"}


@pytest.fixture(params=[*MODELS])
def family(request: pytest.FixtureRequest, root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A family; commands run in the folder of all models."""
    monkeypatch.chdir(root)
    return str(request.param)


def test_prune_with_data_then_verify_against_the_dense_model(family: str, tmp_path: Path) -> None:
    given = (*MODELS[family], "--data", DATA[family], "--batch", 2, "--max-batches", 1, "-q")
    made = answer("prune", *given, "-o", tmp_path / "small", "--ratio", 0.3)
    assert made["criterion"] == "gradflow"
    assert made["achieved"] == pytest.approx(0.3, abs=0.02)
    assert all(check["ok"] for check in made["checks"])
    dense, *weights = MODELS[family]
    proofs = answer("verify", tmp_path / "small", "--dense", dense, *weights)["checks"]
    assert [p["name"].partition(" ")[0] for p in proofs[:2]] == ["permutation", "masked"]
    assert all(p["ok"] for p in proofs)


def test_without_data_the_criterion_is_magnitude_and_that_is_said(family: str, tmp_path: Path) -> None:
    result = run("prune", *MODELS[family], "-o", tmp_path / "small", "--ratio", 0.3, "--samples", 1, "-q", "--json")
    said = re.sub(r"\s+", " ", result.stderr)
    if family == "ddpm":
        assert json.loads(result.stdout)["criterion"] == "gradflow"
        assert "ranked by magnitude" not in said
    else:
        assert json.loads(result.stdout)["criterion"] == "magnitude"
        assert "draws no data itself, so channels are ranked by magnitude; --data lets gradflow" in said


def test_a_criterion_that_was_asked_for_is_not_replaced(root: Path, tmp_path: Path) -> None:
    result = call("prune", root / "timm", "-o", tmp_path / "small", "--criterion", "gradflow", "-q")
    assert result.exit_code == 1
    assert "pass data=" in result.stderr


@pytest.mark.parametrize("family", ["timm", "torchvision", "llama"], indirect=True)
def test_a_plan_is_written_and_applied_to_other_weights(family: str, tmp_path: Path) -> None:
    common = ("--criterion", "random", "--ratio", 0.25, "-q")
    planned = answer("plan", *MODELS[family], "-o", tmp_path / "plan.json", *common)
    model, *weights = MODELS[family]
    applied = answer("apply", model, tmp_path / "plan.json", *weights, "-o", tmp_path / "small")
    assert planned["costs"]["params"] == applied["costs"]["params"]
    plan = fxprune.Plan.from_json((tmp_path / "plan.json").read_text())
    assert fxprune.report(fxprune.open_model(tmp_path / "small")).plan.removed == plan.removed


def test_an_applied_plan_is_corrected_when_asked(root: Path, tmp_path: Path) -> None:
    files = ("--data", root / "images", "--batch", 2)
    answer("plan", root / "timm", "-o", tmp_path / "plan.json", "--criterion", "random", "--ratio", 0.25, "-q")
    for name, how in {"plain": (), "obs": ("--criterion", "obs", *files)}.items():
        answer("apply", root / "timm", tmp_path / "plan.json", "-o", tmp_path / name, "-q", *how)
    plain, corrected = (fxprune.open_model(tmp_path / name) for name in ("plain", "obs"))
    assert [p.shape for p in plain.parameters()] == [p.shape for p in corrected.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), corrected.parameters(), strict=True))
    refused = call("apply", root / "timm", tmp_path / "plan.json", "-o", tmp_path / "odd", *files)
    assert refused.exit_code == 1
    assert "to correct what stays" in refused.stderr
    assert not (tmp_path / "odd").exists()


def test_times_count_beside_files(root: Path, tmp_path: Path) -> None:
    files = ("--data", root / "images", "--batch", 2, "--timesteps", "snr", "-q")
    chosen = ("--criterion", "taylor", "--ratio", 0.3)
    answer("plan", root / "ddpm", "-o", tmp_path / "plan.json", *chosen, *files)
    answer("prune", root / "ddpm", "-o", tmp_path / "small", *chosen, *files)
    plan = fxprune.Plan.from_json((tmp_path / "plan.json").read_text())
    assert fxprune.report(fxprune.open_model(tmp_path / "small").unet).plan.removed == plan.removed
    answer("apply", root / "ddpm", tmp_path / "plan.json", "-o", tmp_path / "again", "--criterion", "obs", *files)


@pytest.mark.parametrize("family", ["timm", "torchvision", "llama"], indirect=True)
def test_inspect_and_its_json_say_the_same(family: str) -> None:
    told, shown = answer("inspect", *MODELS[family]), run("inspect", *MODELS[family]).stdout
    assert f"{told['model']}: {told['params']:,} parameters" in shown
    largest = max(told["groups"], key=lambda g: g["channels"] * g["params_each"])
    assert largest["name"][:12] in shown
    assert max(map(len, shown.splitlines())) <= WIDE


@pytest.mark.parametrize("kind", ["pt2", "onnx"])
def test_export_is_compared_with_the_model(root: Path, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    file = tmp_path / f"m.{kind}"
    made = answer("export", root / "timm", "-o", file, "--batch", 2)
    assert made["error"] < 1e-4
    assert list(made["inputs"].values()) == ["(2, 3, 160, 160)"]
    assert file.stat().st_size > 10_000
    refused = call("export", root / "timm", "-o", tmp_path / "m.tflite")
    assert refused.exit_code == 1
    assert "names no format: end it with .pt2 or .onnx" in refused.stderr


def test_sample_draws_images_or_goes_on_with_a_text(root: Path, tmp_path: Path) -> None:
    from PIL import Image

    given = ("sample", root / "ddpm", "-n", 5, "--steps", 2, "-q", "-o")
    run(*given, tmp_path / "a.png")
    run(*given, tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").size == (3 * 8 + 2 * 2, 2 * 8 + 2)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    texts = answer("sample", root / "llama", "--prompt", "the cat", "--prompt", "a dog", "--tokens", 3)["texts"]
    assert [t[:5] for t in texts] == ["the c", "a dog"]
    for args, message in (
        ((root / "llama",), 'goes on from a text: pass --prompt "..."'),
        ((root / "timm",), "a ResNet alone draws nothing"),
        ((root / "ddpm", "--prompt", "x"), "DDPMPipeline takes no prompt: leave out --prompt"),
    ):
        result = call("sample", *args)
        assert result.exit_code == 1
        assert message in result.stderr


def test_sensitivity_and_compare_take_data(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    common = ("timm", "--data", "images", "--batch", 3, "-q")
    table = answer("sensitivity", *common, "--criterion", "magnitude", "--shares", 0.5, "--ignore", "layer3,layer4")
    assert table["curves"]
    assert all(len(c["values"]) == 1 for c in table["curves"])
    rows = answer("compare", *common, "--criteria", "magnitude,random", "--ratios", 0.3, "-o", tmp_path / "c")["rows"]
    assert [r["criterion"] for r in rows] == ["magnitude", "random"]
    for command in ("sensitivity", "compare"):
        result = call(command, "timm", "-q")
        assert result.exit_code == 1
        assert f"{command} measures a loss, and a ResNet draws no data itself: pass --data" in result.stderr


def test_train_on_images_in_sub_folders(root: Path, tmp_path: Path) -> None:
    given = ("--ratio", 0.3, "--criterion", "magnitude", "--steps", 3, "--batch", 2, "-q")
    run("prune", root / "timm", "-o", tmp_path / "small", "--data", root / "images", *given)
    cut = ("--ratio", 0.3, "--criterion", "magnitude", "-q")
    run("prune", root / "timm", "-o", tmp_path / "cut", *cut)
    one, two = (fxprune.open_model(tmp_path / name).state_dict() for name in ("small", "cut"))
    assert any(not torch.equal(one[k], two[k]) for k in one if one[k].shape == two[k].shape)


def test_json_is_all_on_stdout_for_errors_too(root: Path, tmp_path: Path) -> None:
    result = call("inspect", tmp_path, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["error"] == "SaveError"
    assert "is neither a diffusers pipeline" in result.stderr
    assert [p["name"] for p in answer("list")["criteria"] if p["name"] == "gradflow"] == ["gradflow"]
    run("prune", root / "timm", "-o", tmp_path / "small", "--criterion", "magnitude", "-q")
    told = answer("report", tmp_path / "small", "-o", tmp_path / "r.html")
    assert told["models"]["ResNet"]["criterion"] == "magnitude"


# ---- files of options ----------------------------------------------------------------------------------------------

TOML = """
criterion = "magnitude"
ratio = 0.5
quiet = true
ignore = ["fc", "conv1*"]

[prune]
out = "{out}"
min_width = 2
verify = false
group-ratio = {{ "layer1*" = 0.0 }}

[plan]
out = "nothing.json"
"""
YAML = """
criterion: magnitude
ratio: 0.5
quiet: true
ignore: [fc, conv1*]
prune: {{out: {out}, min-width: 2, verify: false, group_ratio: {{layer1*: 0.0}}}}
"""


@pytest.mark.parametrize(("name", "text"), [("f.toml", TOML), ("f.yaml", YAML)])
def test_a_file_says_the_same_as_the_flags_and_flags_win(root: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text.format(out=tmp_path / "small"))
    told = answer("prune", root / "timm", "--config", tmp_path / name, "--ratio", 0.2)
    flags = ("--criterion", "magnitude", "--ignore", "fc", "--ignore", "conv1*", "--min-width", 2, "--no-verify", "-q")
    wanted = answer("prune", root / "timm", "-o", tmp_path / "x", *flags, "--group-ratio", "layer1*=0", "--ratio", 0.2)
    assert {**told, "out": ""} == {**wanted, "out": ""}
    assert told["asked"] == 0.2
    assert told["checks"] == []
    removed = [fxprune.report(fxprune.open_model(tmp_path / f)).plan.removed for f in ("small", "x")]
    assert removed[0] == removed[1]


def test_the_model_may_stand_in_the_file(root: Path, tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(f'model = "{root / "timm"}"\nattention = "head_dim"\n')
    assert answer("inspect", "--config", tmp_path / "f.toml")["model"] == "ResNet"


WRONG = {
    "unknown key": ("ratoi = 0.3", "'ratoi' is no option of fxprune prune; did you mean 'ratio'"),
    "unknown in table": ("[prune]\nsped = 3", "'sped' is no option of fxprune prune"),
    "of another command": ("shares = [0.3]", "'shares' is no option of fxprune prune"),
    "a wrong value": ('ratio = "much"', "Invalid value for '--ratio'"),
    "no TOML": ("ratio: 0.3", "cannot be read: TOMLDecodeError"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_an_error_of_the_command_line(root: Path, tmp_path: Path, case: str) -> None:
    text, message = WRONG[case]
    (tmp_path / "f.toml").write_text(text)
    result = call("prune", root / "timm", "-o", tmp_path / "o", "--config", tmp_path / "f.toml")
    assert result.exit_code == 2
    said = re.sub(r"[\s│╭╮╰╯─]+", " ", result.stderr)
    assert message in said
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_both_options(name: str) -> None:
    shown = run(name, "--help").stdout
    assert "--json" in shown
    assert "--config" in shown
    assert max(map(len, shown.splitlines())) <= WIDE
