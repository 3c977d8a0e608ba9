"""`open_model`: folders of every library, architectures with weights of any kind, and names on the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import small_folders as folders
import torch
from safetensors.torch import save_file
from torch import nn

import fxprune
from fxprune import registry
from fxprune.adapter import Adapter
from fxprune.adapters.generic import GenericAdapter
from fxprune.sources.checkpoints import fitting, read_weights

pytest.importorskip("timm")
pytest.importorskip("transformers")

RESNET = "timm:test_resnet"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of several libraries."""
    root = tmp_path_factory.mktemp("models")
    folders.timm_cnn(root / "timm")
    folders.llama(root / "llama")
    folders.ddpm(root / "ddpm")
    return root


FOLDERS = {"timm": "ResNet", "llama": "LlamaForCausalLM", "ddpm": "DDPMPipeline"}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_each_library_opens_prunes_and_opens_again(small: Path, tmp_path: Path, name: str) -> None:
    made = fxprune.open_model(small / name)
    assert type(made).__name__ == FOLDERS[name]
    assert not getattr(made, "training", False)
    fxprune.save(fxprune.prune(made, "magnitude", 0.3, progress=False), tmp_path / "out")
    assert type(fxprune.open_model(tmp_path / "out")).__name__ == FOLDERS[name]


def test_a_timm_folder_keeps_its_weights_and_classes(small: Path) -> None:
    one, two = (fxprune.open_model(small / "timm") for _ in range(2))
    torch.manual_seed(0)
    other = fxprune.open_model(RESNET, weights="random")
    assert one.get_classifier().out_features == 2 != other.get_classifier().out_features
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


WRAPPED = {
    "plain.pth": lambda s: s,
    "ddp.pt": lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
    "compiled.bin": lambda s: {"model": {f"_orig_mod.module.{k}": v for k, v in s.items()}},
    "averaged.pth": lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "state_dict_ema": s},
}


@pytest.mark.parametrize("file", [*WRAPPED, "plain.safetensors"])
def test_a_checkpoint_tells_weights_and_number_of_classes(tmp_path: Path, file: str) -> None:
    dense = fxprune.open_model(RESNET, weights="random", arguments={"num_classes": 5})
    if file.endswith(".safetensors"):
        save_file(dense.state_dict(), tmp_path / file)
    else:
        torch.save(WRAPPED[file](dense.state_dict()), tmp_path / file)
    again = fxprune.open_model(RESNET, weights=tmp_path / file)
    assert again.get_classifier().out_features == 5
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again(x), dense(x))


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet18"])
def test_torchvisions_models_are_saved_so_that_they_open_alone(tmp_path: Path, name: str) -> None:
    dense = fxprune.open_model(f"torchvision:{name}", weights="random", arguments={"num_classes": 7})
    torch.save(dense.state_dict(), tmp_path / "w.pth")
    net = fxprune.open_model(f"torchvision:{name}", weights=tmp_path / "w.pth")
    x = torch.randn(1, 3, 64, 64)
    small = fxprune.prune(net, "magnitude", 0.3, example_inputs=x, progress=False)
    fxprune.save(small, tmp_path / "small")
    again = fxprune.open_model(tmp_path / "small")
    assert again(x).shape == (1, 7)
    assert torch.equal(again(x), small(x))


def test_a_torchvision_model_that_was_changed_asks_for_itself(tmp_path: Path) -> None:
    net = fxprune.open_model("torchvision:squeezenet1_1", weights="random")
    net.features[1] = nn.LeakyReLU(0.3)
    fxprune.save(net, tmp_path / "m")
    with pytest.raises(fxprune.SaveError, match="pass an unpruned one"):
        fxprune.open_model(tmp_path / "m")
    fxprune.load(tmp_path / "m", model=net)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no such architecture": ("timm:resnt18", {"weights": "random"}, "timm .* no model called 'resnt18'; did you mean"),
    "no such torchvision": (
        "torchvision:resnet19",
        {"weights": "random"},
        "torchvision has no model called 'resnet19'",
    ),
    "no such family": ("tim:x", {}, "no adapter called 'tim'; did you mean 'timm'"),
    "a family without names": ("ddpm:x", {}, "DDPMAdapter makes no model by name"),
    "no folder": ("nowhere", {}, "there is no folder nowhere"),
    "weights of a folder": (".", {"weights": "x"}, "weights= goes with the name of an architecture"),
    "no file": (RESNET, {"weights": "none.pth"}, "there is no file of weights none.pth"),
    "argument": (RESNET, {"weights": "random", "arguments": {"widht": 1}}, r"cannot be made with \{'widht': 1\}"),
    "no path": (3, {}, "open_model.*source=3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_opened_is_told(case: str) -> None:
    source, given, message = REFUSED[case]
    with pytest.raises(fxprune.FxPruneError, match=message):
        fxprune.open_model(source, **given)


def test_files_that_are_no_weights_are_told(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")
    with pytest.raises(fxprune.SaveError, match="holds Python objects, which fxprune does not run"):
        read_weights(tmp_path / "whole.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(fxprune.SaveError, match="holds no tensors by name"):
        read_weights(tmp_path / "empty.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678")
    with pytest.raises(fxprune.SaveError, match="cannot be read as weights"):
        read_weights(tmp_path / "bad.safetensors")
    with pytest.raises(fxprune.SaveError, match=r"is a file: name the architecture"):
        fxprune.open_model(tmp_path / "whole.pth")


def test_weights_of_another_model_are_told(tmp_path: Path) -> None:
    state = {k: v for k, v in fxprune.open_model(RESNET, weights="random").state_dict().items() if "bn1" not in k}
    torch.save({**state, "more": torch.ones(2), "conv1.0.weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(fxprune.SaveError, match=r"does not fit a ResNet: it lacks .*; it has besides more"):
        fxprune.open_model(RESNET, weights=tmp_path / "w.pth")


def test_a_prefix_is_taken_off_only_where_all_names_have_it() -> None:
    net = nn.Linear(2, 2)
    state = net.state_dict()
    assert fitting({f"net.{k}": v for k, v in state.items()}, net).keys() == state.keys()
    mixed = {"a.weight": state["weight"], "b.bias": state["bias"]}
    assert fitting(mixed, net) == mixed


def test_a_folder_that_names_code_is_not_run(small: Path, tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(small / "llama", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x--y.Z"}}))
    with pytest.raises(fxprune.SaveError, match=r"auto_map.*(names code|is something to fetch)"):
        fxprune.open_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "architectures": ["Evil"]}))
    with pytest.raises(fxprune.SaveError, match="no model class called 'Evil'"):
        fxprune.open_model(tmp_path / "m")


def test_a_plugins_family_opens_by_name_and_by_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(GenericAdapter):
        def named(self, name: str, arguments: Any, pretrained: bool) -> nn.Module:
            return nn.Linear(2, int(arguments["out"])) if not pretrained else nn.Identity()

        def read(self, directory: Path) -> nn.Module | None:
            return nn.Tanh() if (directory / "mine").exists() else None

    names, get = registry.names, registry.get
    monkeypatch.setattr(registry, "names", lambda kind: ["mine", *names(kind)])
    monkeypatch.setattr(registry, "get", lambda kind, name: Mine if name == "mine" else get(kind, name))
    assert issubclass(Mine, Adapter)
    assert fxprune.open_model("mine:line", weights="random", arguments={"out": 3}).out_features == 3
    (tmp_path / "mine").touch()
    assert isinstance(fxprune.open_model(tmp_path), nn.Tanh)


# ---- the hub -------------------------------------------------------------------------------------------------------


class Hub:
    """A hub with one model, which remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Any] = []

    def snapshot_download(self, name: str, **options: Any) -> str:
        self.asked.append((name, options["revision"], options["allow_patterns"]))
        return str(self.folder)


@pytest.mark.parametrize("name", ["timm", "llama"])
def test_a_name_on_the_hub_reaches_the_hubs_own_loader(small: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(small / name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    made = fxprune.open_model("somebody/model", revision="v2")
    assert type(made).__name__ == FOLDERS[name]
    assert [(n, r) for n, r, _ in hub.asked] == [("somebody/model", "v2")] * 2
    assert "config.json" in hub.asked[0][2]
    assert "*.safetensors" in hub.asked[1][2]


def test_a_pipeline_on_the_hub_is_fetched_by_diffusers(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DiffusionPipeline

    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(small / "ddpm"))
    asked: list[str] = []
    monkeypatch.setattr(DiffusionPipeline, "download", lambda n, **_: asked.append(n) or str(small / "ddpm"))
    assert type(fxprune.open_model("somebody/ddpm")).__name__ == "DDPMPipeline"
    assert asked == ["somebody/ddpm"]


def test_a_hub_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Down(Hub):
        def snapshot_download(self, name: str, **options: Any) -> str:
            raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Down(Path()))
    message = (
        "there is no folder somebody/model, and no model of that name came from the hub: ConnectionError: no route"
    )
    with pytest.raises(fxprune.SaveError, match=message):
        fxprune.open_model("somebody/model")
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(Path(__file__).parent))
    with pytest.raises(fxprune.SaveError, match=r"has none of fxprune.json, model_index.json, config.json"):
        fxprune.open_model("somebody/model")
