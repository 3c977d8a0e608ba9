"""Models that cannot be captured whole: their parts are, on what they are given while the whole runs."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import faster_rcnn, mask_rcnn, ssd
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

import fxprune

IMAGES = [torch.rand(3, 32, 40), torch.rand(3, 36, 32)]
SIZES: dict[str, Any] = {"min_size": 32, "max_size": 48}
FEW = {**SIZES, "rpn_post_nms_top_n_test": 8, "rpn_post_nms_top_n_train": 8, "box_detections_per_img": 2}


class Body(nn.Sequential):
    """A small backbone of one map, or of two."""

    def __init__(self, maps: int = 1) -> None:
        super().__init__(
            nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, 2, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, 2, 1)
        )
        self.maps, self.out_channels = maps, 32

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return OrderedDict({"0": y, "1": F.avg_pool2d(y, 2)}) if self.maps > 1 else y


def anchors(*ratios: float) -> AnchorGenerator:
    return AnchorGenerator(((8,),), (ratios,))


DETECTORS: dict[str, Callable[[], nn.Module]] = {
    "FasterRCNN": lambda: detection.FasterRCNN(Body(), 3, rpn_anchor_generator=anchors(1.0), **FEW),
    "MaskRCNN": lambda: detection.MaskRCNN(
        Body(), None, rpn_anchor_generator=anchors(1.0), **FEW,
        box_predictor=faster_rcnn.FastRCNNPredictor(1024, 3),
        mask_head=mask_rcnn.MaskRCNNHeads(32, (16, 16), 1), mask_predictor=mask_rcnn.MaskRCNNPredictor(16, 16, 3),
    ),
    "RetinaNet": lambda: detection.RetinaNet(Body(), 3, anchor_generator=anchors(0.5, 1.0), score_thresh=0.0, **SIZES),
    "FCOS": lambda: detection.FCOS(Body(), 3, anchor_generator=anchors(1.0), score_thresh=0.0, **SIZES),
    "SSD": lambda: ssd.SSD(
        Body(2), DefaultBoxGenerator([[2]] * 2), (32, 32), 3,
        head=ssd.SSDHead([32, 32], [4, 4], 3), score_thresh=0.0,
    ),
}  # fmt: skip
TARGETS = [
    {
        "boxes": torch.tensor([[4.0, 4.0, 20.0, 24.0]]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, *x.shape[1:], dtype=torch.uint8),
    }
    for x in IMAGES
]


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return DETECTORS[name]().eval()


def of_training(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a detector gives in train mode."""
    training = model.training
    losses = model.train()(*batch)
    model.train(training)
    return torch.stack(list(losses.values())).sum()


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_a_detector_is_pruned_whole_by_the_call_that_the_error_says(name: str, tmp_path: Path) -> None:
    model = made(name)
    asked = {"example_inputs": (IMAGES,), "progress": False}
    if name != "SSD":  # torch.export takes that one whole
        with pytest.raises(fxprune.TraceError) as refused:
            fxprune.prune(model, "magnitude", 0.3, **asked)
        call = re.search(r"fxprune\.parts\(.*\)", str(refused.value))
        assert call is not None
        asked["example_inputs"] = eval(call[0], {"fxprune": fxprune, "model": model, **asked})
    else:
        asked["example_inputs"] = fxprune.parts(model, (IMAGES,))
    small = fxprune.prune(model, "magnitude", 0.3, **asked)
    told = fxprune.report(small)
    assert type(small) is type(model)
    assert told.forward == "module"
    total = sum(p.numel() for p in model.parameters())
    assert abs(1 - sum(p.numel() for p in small.parameters()) / total - 0.3) < 0.03
    checks = fxprune.verify(model, small, fxprune.trace(model, asked["example_inputs"]), told.plan)
    assert all(c.ok and not c.note for c in checks)
    loss = of_training(small, (IMAGES, TARGETS))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in small.parameters())
    again = fxprune.load(fxprune.save(small, tmp_path / "m"), model=made(name)).eval()
    for a, b in zip(small.eval()(IMAGES)[0].values(), again(IMAGES)[0].values(), strict=True):
        assert torch.equal(a, b)


def test_scores_are_those_of_the_whole() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), nn.Tanh()), torch.randn(6, 8)
    given: dict[str, Any] = {"data": [x], "loss": lambda net, x: net(x).square().mean(), "progress": False}
    whole, parts = (
        fxprune.score(fxprune.trace(model, example), model, "taylor", **given).values["0.0.weight:0"]
        for example in (x, fxprune.parts(model, x))
    )
    assert whole.tolist() == parts.tolist()
    assert whole.max() > 0


class Chosen(nn.Module):
    """Rows are chosen by their values in Python; a head is called for each, and one weight is read from outside."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.reads, self.idle = reads, nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 4))
        self.inner = nn.Module()
        self.inner.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(inplace=True), nn.Linear(32, 8))
        self.inner.head = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner.body(x)
        rows = [self.inner.head(row.clone()) for row in x if row.sum() > x.mean() - 9]
        y = torch.stack(rows)
        return y * self.inner.body[2].weight.sum() if self.reads else y


def test_parts_are_looked_for_inwards_and_keep_what_others_read() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8)
    model = Chosen()
    found = fxprune.parts(model, x)
    assert found.names == ("inner.body", "inner.head")
    assert repr(found) == "Parts(inner.body, inner.head)"
    small = fxprune.prune(model, "magnitude", 0.4, example_inputs=found, progress=False)
    assert small.inner.head[1].out_features < 32
    assert small.inner.body[0].out_features < 32
    assert small(torch.randn(5, 8)).shape == (5, 4)
    assert any("idle" in n for n in fxprune.report(small).unread)
    assert fxprune.parts(Chosen(reads=True), x).names == ("inner.head",)


def test_the_inputs_of_a_part_are_those_before_it_changed_them() -> None:
    torch.manual_seed(0)
    model, x = Chosen(), torch.randn(3, 8)
    (given,), _ = dict.__getitem__(fxprune.parts(model, x, "inner.head"), "_fxprune_parts")["inner.head"]
    assert torch.equal(given, model.inner.body(x)[0])
    assert (given < 0).any(), "the head's first ReLU writes into what it is given"


class Numbers(nn.Module):
    """A part whose Python holds a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(8, 24), Rows(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Any:
        return [float(v) for v in self.part(x).flatten() if v > 0]


class Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, int("24"))


def test_no_graph_becomes_the_forward_of_parts() -> None:
    model, x = Numbers(), torch.randn(3, 8)
    with pytest.raises(fxprune.RewriteError, match="parts have no forward that the rewritten graph could be: use ign"):
        fxprune.prune(model, "magnitude", 0.4, example_inputs=fxprune.parts(model, x), progress=False)


REFUSED: list[tuple[Any, str]] = [
    ("inner.bod", r"'inner.bod', which is no module within the model; did you mean 'inner.body'"),
    ([], r"names=\[\] must be names of modules, at least one"),
    (["inner", "inner.body"], r"'inner.body', which is within 'inner': name one of the two"),
    (["idle", "inner.head"], r"'idle', which is not called on example_inputs; called are parts such as inner.head"),
    (["inner.body"], r"'inner.body', whose tensors sum reads outside of it: name a larger part"),
]


@pytest.mark.parametrize(("names", "told"), REFUSED)
def test_parts_that_are_none(names: Any, told: str) -> None:
    with pytest.raises(fxprune.InputsError, match=told):
        fxprune.parts(Chosen(reads=True), torch.randn(3, 8), names)


def test_a_model_without_such_parts_and_one_that_fails() -> None:
    with pytest.raises(fxprune.InputsError, match="no part of this Linear can be captured and pruned"):
        fxprune.parts(nn.Linear(2, 2), torch.ones(1, 2))
    with pytest.raises(fxprune.InputsError, match="the model does not run on example_inputs"):
        fxprune.parts(Chosen(), torch.ones(1, 3))
    found = fxprune.parts(Chosen(), torch.randn(3, 8))
    with pytest.raises(fxprune.InputsError, match="are of parts already"):
        fxprune.parts(Chosen(), found)
