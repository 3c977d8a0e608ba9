"""A comparison's file holds rows of one model, data, loss and options; what differs is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.studies.comparison import CSV, PNG

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def net(width: int = 24, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 2))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def first(ctx: Any) -> Any:
    return {n: p.abs() for n, p in ctx.parameters.items()}


def compared(model: nn.Module | None = None, criteria: Any = ("magnitude",), ratios: Any = (0.3,), **other: Any) -> Any:
    given = {"example_inputs": X[:1], "data": [X], "loss": loss, "progress": False, **other}
    return fxprune.compare(model or net(), list(criteria), list(ratios), **given)


OTHER: dict[str, dict[str, Any]] = {
    "model": {"model": net(seed=1)},
    "of": {"of": "macs"},
    "attention": {"attention": "head_dim"},
    "samples": {"samples": 9},
    "data": {"data": [X + 1]},
    "held_out": {"held_out": [X + 1]},
    "loss": {"loss": lambda m, b: m(b).abs().mean()},
    "ignore": {"ignore": ("2",)},
    "example_inputs": {"example_inputs": X[:2]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("compared")
    compared(out=made, criteria=["magnitude", first])
    return made


@pytest.mark.parametrize("name", OTHER)
def test_rows_of_something_else_are_refused_by_name(name: str, folder: Path) -> None:
    before = (folder / CSV).read_text(encoding="utf-8")
    with pytest.raises(fxprune.InputsError, match=rf"another comparison: {name} was .* and now is .* another folder"):
        compared(out=folder, **OTHER[name])
    assert (folder / CSV).read_text(encoding="utf-8") == before


def test_a_criterion_of_the_same_name_is_another_one(folder: Path) -> None:
    def other(ctx: Any) -> Any:
        return {n: -p.abs() for n, p in ctx.parameters.items()}

    other.__name__ = "first"
    with pytest.raises(fxprune.InputsError, match=r"criterion first was .* and now is"):
        compared(out=folder, criteria=[other])
    with pytest.raises(fxprune.InputsError, match="two of the criteria are called 'first'"):
        compared(criteria=[first, other])


@pytest.mark.parametrize("ratio", [1 / 3, 0.1 + 0.2, 0.30000000000000004, 1e-1])
def test_ratios_are_found_again_to_the_last_bit(ratio: float, tmp_path: Path) -> None:
    rows = [compared(out=tmp_path, ratios=[ratio]).rows for _ in range(2)]
    assert rows[0] == rows[1]
    assert len((tmp_path / CSV).read_text(encoding="utf-8").splitlines()) == 3


@pytest.mark.parametrize("text", ["# Net, ratios of params, attention by heads, 8 samples\n", "hello\n", "# x {}\n"])
def test_a_file_that_does_not_say_what_it_is_of_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / CSV).write_text(text, encoding="utf-8")
    with pytest.raises(fxprune.InputsError, match="does not say of which weights"):
        compared(out=tmp_path)
    assert (tmp_path / CSV).read_text(encoding="utf-8") == text


def test_a_damaged_row_is_told(tmp_path: Path) -> None:
    compared(out=tmp_path)
    file = tmp_path / CSV
    file.write_text(file.read_text(encoding="utf-8").replace("magnitude,0.3", "magnitude,zero"), encoding="utf-8")
    with pytest.raises(fxprune.InputsError, match=r"is damaged \(.*'zero'\)"):
        compared(out=tmp_path)


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_told_before_the_work(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(fxprune.SaveError, match=r"out=.* cannot be written to"):
        compared(out=tmp_path / out, loss=None)


def test_a_picture_that_fails_keeps_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(fxprune.InputsError, match=r"compare\.png cannot be written: OSError: disk full") as caught:
        compared(out=tmp_path)
    assert caught.value.kept.rows[0].criterion == "magnitude"
    assert not (tmp_path / PNG).exists()


def test_it_prints_as_a_table() -> None:
    lines = str(compared(criteria=["magnitude", "random"])).splitlines()
    assert lines[0].startswith("Sequential: loss after pruning params, without training (dense: ")
    assert [line.split()[:2] for line in lines[1:]] == [["criterion", "ratio"], ["magnitude", "0.3"], ["random", "0.3"]]


def blind(model: nn.Module, batch: Tensor) -> Tensor:
    return batch.sum()


def test_a_loss_that_ignores_the_model_is_refused() -> None:
    with pytest.raises(fxprune.InputsError, match="does not look at the model"):
        compared(loss=blind)
    with pytest.raises(fxprune.InputsError, match="does not look at the model"):
        fxprune.sensitivity(net(), "magnitude", example_inputs=X, data=[X], loss=blind, progress=False)
    constant = fxprune.sensitivity(
        net(), "magnitude", example_inputs=X, metric=lambda m: 1.0, shares=[0.5], progress=False
    )
    assert constant.base == 1.0
