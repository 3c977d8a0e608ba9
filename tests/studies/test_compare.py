"""Criteria side by side: rows that are right, a file that a run goes on from, bad criteria that harm no other."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from plugins import install_by_hand
from saved_nets import tiny_unet
from torch import Tensor, nn
from typer.testing import CliRunner

import fxprune
from fxprune.cli import app
from fxprune.studies import compare
from fxprune.studies.comparison import CSV, NAMES, PNG

SHAKY = """
import torch

class Base:
    def __call__(self, ctx):
        return {n: torch.rand_like(p) for n, p in ctx.parameters.items()}

class Shape(Base):
    def __call__(self, ctx):
        return {next(iter(ctx.parameters)): torch.ones(7)}

class NaN(Base):
    def __call__(self, ctx):
        return {n: p * torch.nan for n, p in ctx.parameters.items()}

class Group(Base):
    def __call__(self, ctx):
        return {"nowhere:0": [1.0]}

class Writes(Base):
    def __call__(self, ctx):
        next(iter(ctx.parameters.values())).data.zero_()
        return super().__call__(ctx)

class Replaces(Base):
    def __call__(self, ctx):
        name, p = next(iter(ctx.parameters.items()))
        path, _, key = name.rpartition(".")
        setattr(ctx.model.get_submodule(path), key, torch.nn.Parameter(torch.zeros_like(p)))
        return super().__call__(ctx)

class Hooks(Base):
    def __call__(self, ctx):
        for m in ctx.model.modules():
            m.register_forward_hook(lambda m, i, o: None)
        return super().__call__(ctx)
"""
BAD = {
    "shape": r"returned shape \(7,\)",
    "nan": "holds NaN",
    "group": "returned 'nowhere:0', which is neither",
    "writes": "changed the model: .* was written to in place",
    "replaces": "changed the model: .* was replaced",
    "hooks": "changed the model: it left a hook",
    "gone": "cannot be imported: ModuleNotFoundError",
}


@pytest.fixture
def shaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose criteria all go wrong."""
    site = tmp_path / "site"
    points = "".join(f"{c.lower()} = shaky_compared:{c}\n" for c in re.findall(r"class (\w+)\(Base", SHAKY))
    install_by_hand(site, "shaky-plugin", f"[fxprune.criteria]\n{points}gone = no_such_module_at_all:Gone\n")
    (site / "shaky_compared.py").write_text(SHAKY, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3))


X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch[:, :3]).square().mean()


GIVEN: dict[str, Any] = {"example_inputs": X[:1], "data": [X], "loss": loss, "progress": False}


def rows_of(folder: Path) -> list[dict[str, str]]:
    lines = (folder / CSV).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# Sequential, ratios of params")
    return list(csv.DictReader(lines[1:]))


def test_a_row_is_what_prune_gives() -> None:
    made = fxprune.compare(net(), ["magnitude", "taylor"], [0.3, 0.6], seeds=2, held_out=[X[:8], X[8:]], **GIVEN)
    assert [(r.criterion, r.ratio, r.seed) for r in made.rows] == [
        (c, ratio, seed) for c in ("magnitude", "taylor") for ratio in (0.3, 0.6) for seed in (0, 1)
    ]
    row = made.rows[-1]
    small = fxprune.prune(net(), "taylor", 0.6, **GIVEN)
    assert row.loss == pytest.approx(loss(small, X).item(), rel=1e-5)
    assert row.dense == pytest.approx(loss(net(), X).item(), rel=1e-5)
    assert row.params == pytest.approx(fxprune.report(small).plan.achieved)
    assert row.seconds is not None
    assert row.seconds > 0
    assert not any(r.error for r in made.rows)
    summary = made.summary()
    assert [cells[:2] for cells in summary] == [(c, r) for c in ("magnitude", "taylor") for r in ("0.3", "0.6")]
    assert re.fullmatch(r"\S+ ± \S+", summary[0][2])


def test_a_bad_criterion_has_its_error_in_its_rows_and_the_others_go_on(tmp_path: Path, shaky: None) -> None:
    model = net()
    weights, hooks = {n: p.clone() for n, p in model.state_dict().items()}, len(model[0]._forward_hooks)
    parameters = dict(model.named_parameters())
    made = fxprune.compare(model, [*BAD, "taylor"], [0.5], out=tmp_path / "out", **GIVEN)
    errors = {row.criterion: row.error for row in made.rows}
    for name, message in BAD.items():
        assert re.search(f"{name}' of package 'shaky-plugin'.*{message}", errors[name]), errors[name]
    assert errors["taylor"] == ""
    alone = fxprune.compare(net(), ["taylor"], [0.5], **GIVEN).rows[0]
    assert made.rows[-1].loss == alone.loss
    assert all(torch.equal(p, weights[n]) for n, p in model.state_dict().items())
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert len(model[0]._forward_hooks) == hooks
    assert "was replaced" in next(r for r in rows_of(tmp_path / "out") if r["criterion"] == "replaces")["error"]
    assert (tmp_path / "out" / PNG).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []
    real = compare.score

    def spy(graph: Any, model: Any, criterion: Any, **options: Any) -> Any:
        scored.append(f"{criterion} {options['seed']}")
        if len(scored) == 3:
            raise KeyboardInterrupt
        return real(graph, model, criterion, **options)

    monkeypatch.setattr(compare, "score", spy)
    ask: dict[str, Any] = {"seeds": 2, "out": tmp_path, **GIVEN}
    with pytest.raises(KeyboardInterrupt):
        fxprune.compare(net(), ["magnitude", "random"], [0.3, 0.5], **ask)
    assert len(rows_of(tmp_path)) == 4
    with (tmp_path / CSV).open("a", encoding="utf-8") as file:
        file.write("magnitude,0.3,1,0.12")  # a row cut off
    made = fxprune.compare(net(), ["magnitude", "random"], [0.3, 0.5], **ask)
    assert scored == ["magnitude 0", "random 0", "magnitude 1", "magnitude 1", "random 1"]
    assert len(rows_of(tmp_path)) == len(made.rows) == 8
    monkeypatch.setattr(compare, "score", real)
    fresh = fxprune.compare(net(), ["magnitude", "random"], [0.3, 0.5], seeds=2, **GIVEN)
    assert [r.loss for r in fresh.rows] == pytest.approx([r.loss for r in made.rows])
    more = fxprune.compare(net(), ["lamp", "magnitude"], [0.5], out=tmp_path, **GIVEN)
    assert len(rows_of(tmp_path)) == 9
    assert [r.criterion for r in more.rows] == ["lamp", "magnitude"]
    with pytest.raises(fxprune.InputsError, match="holds another comparison"):
        fxprune.compare(net(), ["lamp"], [0.5], of="macs", out=tmp_path, **GIVEN)


def test_bad_use_is_told() -> None:
    with pytest.raises(fxprune.CriterionError, match="no criterion called 'magnitud'; did you mean 'magnitude'"):
        fxprune.compare(net(), ["taylor", "magnitud"], **GIVEN)
    with pytest.raises(fxprune.InputsError, match=r"ratios=\[1\.5\], seeds=1"):
        fxprune.compare(net(), ["taylor"], [1.5], **GIVEN)
    with pytest.raises(fxprune.InputsError, match="comparing criteria looks at the model at work: pass data="):
        fxprune.compare(net(), ["magnitude"], [0.5], example_inputs=X[:1], progress=False)


def test_the_command_line(tmp_path: Path, shaky: None) -> None:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    tiny_unet().save_pretrained(tmp_path / "model")
    ask = ["compare", str(tmp_path / "model"), "--criteria", "magnitude, shape", "--ratios", "0.2,0.4"]
    ask += ["--out", str(tmp_path / "out"), "--samples", "2", "--quiet"]
    result = CliRunner().invoke(app, ask)
    assert result.exit_code == 0, result.output + str(result.exception)
    shown = re.sub(r"\s+", " ", result.stdout)
    assert "UNet2DModel: loss after pruning, without training (dense: " in shown
    assert re.search(r"magnitude 0\.4 \S+ (39\.9|40\.\d)% \d+\.\d% \d+\.\d\dx \d+\.\d\d s", shown)
    assert "shape: CriterionError: criterion 'shape' of package 'shaky-plugin' returned" in result.stderr
    lines = (tmp_path / "out" / CSV).read_text(encoding="utf-8").splitlines()
    assert lines[1] == ",".join(NAMES)
    assert sum("package 'shaky-plugin' returned shape" in line for line in lines) == 2
    assert (tmp_path / "out" / PNG).is_file()
    bad = CliRunner().invoke(app, [*ask[:5], "0.2,many"])
    assert bad.exit_code == 1
