"""Pruned timm models tell the truth about themselves, serve timm's own code, and are loaded by their name."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import SaveError
from fxprune.saving.save import load, save

timm = pytest.importorskip("timm")

# name, what timm.create_model is called with, the module whose output its features are, their axis
MODELS: dict[str, dict[str, Any]] = {
    "resnet10t": {"in_chans": 1},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "num_classes": 7},
    "mobilenetv3_small_050": {},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 4), "img_size": 56},
}


def image(model: Any) -> Tensor:
    return fxprune.adapter.find_adapter(model).example_inputs(model)[0]


@pytest.fixture(scope="module", params=MODELS)
def small(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(request.param, **MODELS[request.param]).eval()
    return fxprune.prune(model, "magnitude", 0.3, progress=False)


@torch.no_grad()
def test_what_it_tells_is_what_it_gives(small: Any) -> None:
    features = small.forward_features(image(small))
    hidden = small.forward_head(features, pre_logits=True)
    assert small.num_features in features.shape[1:]
    assert small.head_hidden_size == hidden.shape[-1]
    given = small.forward_intermediates(image(small), intermediates_only=True)
    assert [row["num_chs"] for row in small.feature_info] == [f.shape[1] for f in given]
    assert not any("num_chs" in s.name or s.name.endswith("num_features") for s in fxprune.report(small).stale)


@torch.no_grad()
def test_a_new_classifier_fits(small: Any) -> None:
    made = copy.deepcopy(small)
    made.reset_classifier(3)
    assert made(image(small)).shape == (1, 3)
    made.reset_classifier(0)
    assert made(image(small)).shape == (1, small.head_hidden_size)


@torch.no_grad()
def test_a_saved_one_is_loaded_by_its_name(tmp_path: Path, small: Any) -> None:
    again = load(save(small, tmp_path / "m"))
    assert torch.equal(again(image(small)), small(image(small)))
    assert again.feature_info == small.feature_info
    assert (again.num_features, again.head_hidden_size) == (small.num_features, small.head_hidden_size)
    assert again.pretrained_cfg["mean"] == small.pretrained_cfg["mean"]
    assert 'fxprune.load("path/to/this/folder")' in (tmp_path / "m" / "README.md").read_text()


@torch.no_grad()
def test_features_are_taken_of_a_pruned_model() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t").eval()
    small = fxprune.prune(model, "magnitude", 0.3, progress=False)
    net = timm.models.FeatureListNet(copy.deepcopy(small), out_indices=(1, 3))
    assert net.feature_info.channels() == [f.shape[1] for f in net(image(small))]
    assert net.feature_info.channels() != [model.feature_info[i]["num_chs"] for i in (1, 3)]


@torch.no_grad()
def test_a_features_only_model_is_pruned_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", features_only=True, out_indices=(2, 4)).eval()
    small = fxprune.prune(model, "magnitude", 0.3, example_inputs=torch.randn(1, 3, 64, 64), progress=False)
    outputs = small(torch.ones(1, 3, 64, 64))
    assert small.feature_info.channels() == [f.shape[1] for f in outputs]
    again = load(save(small, tmp_path / "m"))
    assert all(map(torch.equal, outputs, again(torch.ones(1, 3, 64, 64))))


def test_what_the_name_does_not_give_asks_for_the_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t").eval()
    model.fc = nn.Linear(model.num_features, 4)
    small = fxprune.prune(model, "magnitude", 0.3, progress=False)
    save(small, tmp_path / "m")
    with pytest.raises(SaveError, match="no ResNet can be built from what the folder says: pass an unpruned one"):
        load(tmp_path / "m")
    assert load(tmp_path / "m", model=model).fc.in_features == small.num_features


def test_a_folder_names_no_other_model(tmp_path: Path) -> None:
    import json

    torch.manual_seed(0)
    small = fxprune.prune(timm.create_model("resnet10t").eval(), "magnitude", 0.3, progress=False)
    path = save(small, tmp_path / "m") / "fxprune.json"
    for name in ("hf-hub:a/b", "local-dir:/x", "nothing"):
        data = json.loads(path.read_text())
        data["config"]["name"] = name
        data.pop("checksums", None)
        path.write_text(json.dumps(data))
        with pytest.raises(SaveError, match=r"cannot be built|something to fetch"):
            load(tmp_path / "m")
