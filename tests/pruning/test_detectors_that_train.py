"""Detectors that were pruned in eval mode take a training step with targets afterwards."""

import pytest
import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import mobilenet_backbone

import fxprune

IMAGES = [torch.rand(3, 64, 64), torch.rand(3, 64, 64)]
TARGETS = [{"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])} for _ in IMAGES]


def body() -> nn.Module:
    """A small backbone of three maps."""
    torch.manual_seed(0)
    return mobilenet_backbone(backbone_name="mobilenet_v3_small", weights=None, fpn=True, trainable_layers=6)


def faster() -> nn.Module:
    anchors = AnchorGenerator(((16, 32, 64),) * 3, ((1.0,),) * 3)
    return detection.FasterRCNN(body(), 3, min_size=64, max_size=64, rpn_anchor_generator=anchors)


def test_the_backbone_goes_in_place_and_the_detector_trains() -> None:
    detector = faster().eval()
    before = sum(p.numel() for p in detector.backbone.parameters())
    fxprune.prune(
        detector.backbone, "magnitude", 0.3, example_inputs=torch.rand(1, 3, 64, 64), progress=False, inplace=True
    )
    assert sum(p.numel() for p in detector.backbone.parameters()) < 0.75 * before
    loss = sum(detector.train()(IMAGES, TARGETS).values())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in detector.backbone.parameters())
    assert len(detector.eval()(IMAGES)) == 2


def test_detr_trains_with_labels() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    layers = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 24], depths=[1, 1], out_features=["stage2"], layer_type="basic"
    )
    sizes = {
        f"{side}_{what}": n
        for side in ("encoder", "decoder")
        for what, n in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 48))
    }
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=layers, d_model=32,
        num_queries=5, num_labels=3, **sizes,
    )  # fmt: skip
    model = transformers.DetrForObjectDetection(config).eval()
    x = torch.rand(2, 3, 64, 64)
    small = fxprune.prune(model, "magnitude", 0.3, example_inputs={"pixel_values": x}, progress=False)
    assert fxprune.report(small).forward == "module"
    assert not fxprune.report(small).unread
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.3]])} for _ in range(2)]
    loss = small.train()(pixel_values=x, labels=labels).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)
