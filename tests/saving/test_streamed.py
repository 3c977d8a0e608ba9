"""A model is pruned from one folder into another, with little of it in memory, and is what `prune` makes of it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import fxprune
from fxprune import folders
from fxprune.errors import FxPruneError, InputsError, SaveError
from fxprune.saving.streamed import opened


class Net(nn.Module):
    """Tied weights, a buffer that is saved and one that is not."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.middle = nn.Linear(width, width)
        self.leave = nn.Linear(width, 8, bias=False)
        self.leave.weight = nn.Parameter(self.leave.weight.detach().clone())
        self.register_buffer("shift", torch.ones(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x)).relu()
        return self.leave(self.middle(x).relu()) + self.shift


X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
GIVEN: dict[str, Any] = {"example_inputs": X, "progress": False}


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "dense"
    made.mkdir()
    state = net().state_dict()
    first = {k: v for k, v in state.items() if k.startswith("enter")}
    save_file(first, made / "model-00001-of-00002.safetensors")
    save_file({k: v for k, v in state.items() if k not in first}, made / "model-00002-of-00002.safetensors")
    return made


@pytest.mark.parametrize("criterion", ["magnitude", "lamp", "fpgm", "bn_scale", "wanda", "taylor"])
def test_the_result_is_that_of_prune(criterion: str, folder: Path, tmp_path: Path) -> None:
    given = dict(GIVEN)
    if criterion in ("wanda", "taylor"):
        given |= {"data": [X], "loss": lambda m, x: m(x).square().mean()}
    plain = fxprune.prune(net(), criterion, 0.4, **given)
    made = fxprune.prune_folder(folder, tmp_path / "small", criterion, 0.4, model=Net, max_shard_size=2000, **given)
    small = fxprune.load(made, model=net())
    assert fxprune.report(small).plan == fxprune.report(plain).plan
    assert torch.equal(small(X), plain.eval()(X))
    assert fxprune.report(small).checks[0].ok
    assert len(list(made.glob("*.safetensors"))) > 1
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_files_stay_as_they_are(folder: Path) -> None:
    before = {p: p.read_bytes() for p in folder.iterdir()}
    with opened(folder, Net) as (found, _), torch.no_grad():
        assert torch.equal(found.enter.weight, net().enter.weight)  # type: ignore[union-attr, arg-type]
        assert torch.equal(found.shift, torch.ones(8))  # type: ignore[arg-type]
        found.enter.weight.zero_()  # type: ignore[union-attr, operator]
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_a_killed_call_goes_on_from_its_plan(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "small"
    calls: list[str] = []

    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    whole, prune = folders.save, folders.prune

    @functools.wraps(prune)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("prune")
        return prune(*args, **kwargs)

    monkeypatch.setattr(folders, "prune", counted)
    monkeypatch.setattr(folders, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        fxprune.prune_folder(folder, target, "magnitude", ratio=0.4, model=Net, **GIVEN)
    assert not target.exists()
    monkeypatch.setattr(folders, "save", whole)
    fxprune.prune_folder(folder, target, "magnitude", ratio=0.4, model=Net, **GIVEN)
    assert calls == ["prune"]
    assert fxprune.report(fxprune.load(target, model=net())).plan.achieved >= 0.4
    monkeypatch.setattr(folders, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        fxprune.prune_folder(folder, target, "magnitude", ratio=0.4, model=Net, **GIVEN)
    monkeypatch.setattr(folders, "save", whole)
    fxprune.prune_folder(folder, target, "magnitude", ratio=0.5, model=Net, **GIVEN)  # another call: another plan
    assert calls == ["prune"] * 3


def test_a_diffusers_folder_needs_no_model(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    unet.save_pretrained(tmp_path / "dense")
    fxprune.prune_folder(tmp_path / "dense", tmp_path / "small", "magnitude", ratio=0.3, progress=False)
    plain = fxprune.prune(unet, "magnitude", 0.3, progress=False)
    small = fxprune.load(tmp_path / "small")
    assert fxprune.report(small).plan == fxprune.report(plain).plan
    given = {"sample": torch.randn(1, 3, 8, 8), "timestep": 3}
    assert torch.equal(small(**given).sample, plain.eval()(**given).sample)


REFUSED: list[tuple[dict[str, Any], type[FxPruneError], str]] = [
    ({"steps": 3}, InputsError, r"prune_folder\(steps=...\): a folder is pruned once, without training"),
    ({"shape": "stock"}, InputsError, r"prune_folder\(shape='stock'\): not from folder to folder"),
    ({"of": "latency"}, InputsError, r"what would be timed is the disk; load the model"),
    ({"rato": 0.4}, InputsError, r"has no argument 'rato'"),
    ({"model": lambda: Net(16)}, SaveError, r"is \(32, 8\) in .*, and \(16, 8\) in the model"),
    ({"model": lambda: nn.Linear(8, 8)}, SaveError, r"which the Linear lacks: pass its model="),
    ({"model": lambda: nn.Sequential()}, SaveError, "lacks: pass its model="),
    ({"model": None}, SaveError, r"holds no config.json of a diffusers model; pass model="),
]


@pytest.mark.parametrize(("options", "kind", "told"), REFUSED)
def test_what_is_refused(
    options: dict[str, Any], kind: type[FxPruneError], told: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=told):
        fxprune.prune_folder(
            folder, tmp_path / "small", "magnitude", **{"ratio": 0.4, "model": Net, **GIVEN, **options}
        )
    assert not (tmp_path / "small").exists()


def test_damaged_and_missing_files(folder: Path, tmp_path: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    whole = path.read_bytes()
    for content, told in ((whole[:40], "is damaged"), (whole[:-40], "is damaged"), (b"", "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(SaveError, match=told):
            fxprune.prune_folder(folder, tmp_path / "small", "magnitude", ratio=0.4, model=Net, **GIVEN)
    path.unlink()
    with pytest.raises(SaveError, match=r"lacks 'norm.weight' of the Net"):
        fxprune.prune_folder(folder, tmp_path / "small", "magnitude", ratio=0.4, model=Net, **GIVEN)


MEASURE = """
import json, sys, threading, time, torch
from pathlib import Path
import fxprune
from fxprune.scoring import mapped
from safetensors.torch import save_file
mapped.MOST = 1 << 24
folder = Path(sys.argv[1])
def net():
    return torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(40)))
if sys.argv[2] == "make":
    torch.manual_seed(0)
    save_file(net().state_dict(), folder / "model.safetensors")
else:
    with torch.device("meta"):
        small = net()
    def held():
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["RssAnon"].split()[0]) * 1024
    seen, done = [], threading.Event()
    def watch():
        while not done.wait(0.005):
            seen.append(held())
    given = dict(example_inputs=torch.ones(1, 1024), progress=False, max_shard_size="10MB")
    fxprune.trace(small, torch.ones(1, 1024, device="meta"))
    before = held()
    threading.Thread(target=watch).start()
    fxprune.prune_folder(folder, folder / "small", "magnitude", ratio=0.4, model=small, **given)
    done.set()
    print(json.dumps((max(seen) - before) / (40 * 1024 * 1025 * 4)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_little_of_it_is_in_memory(tmp_path: Path) -> None:
    """Of 168 MB of weights: pages of files, which the system takes back as it likes, do not count."""
    told = ""
    for what in ("make", "prune"):
        command = [sys.executable, "-c", MEASURE, str(tmp_path), what]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(told.splitlines()[-1]) < 0.8
