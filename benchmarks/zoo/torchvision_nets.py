"""torchvision: classification, segmentation, video and optical flow; detectors by backbone and heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torchvision.models as M
from case import Case
from torch import Tensor, nn


class DenseHeads(nn.Module):
    """A one-stage detector up to its heads: what comes after depends on the data."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.backbone(x)
        maps = [features] if isinstance(features, Tensor) else list(features.values())
        return list(self.head(maps).values())


class RegionHeads(nn.Module):
    """A two-stage detector with given boxes in place of the proposals."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.rpn, self.roi = detector.backbone, detector.rpn.head, detector.roi_heads

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.backbone(x)
        objectness, deltas = self.rpn(list(maps.values()))
        side = x.shape[-1]
        box = torch.tensor([[2.0, 3.0, side * 0.7, side * 0.5], [0.0, 0.0, side - 1.0, side - 1.0]])
        boxes, sides = [box] * x.shape[0], [(side, side)] * x.shape[0]
        out = [
            *objectness,
            *deltas,
            *self.roi.box_predictor(self.roi.box_head(self.roi.box_roi_pool(maps, boxes, sides))),
        ]
        for part in ("mask", "keypoint"):
            if getattr(self.roi, f"has_{part}")():
                pool, head, predictor = (getattr(self.roi, f"{part}_{k}") for k in ("roi_pool", "head", "predictor"))
                out.append(predictor(head(pool(maps, boxes, sides))))
        return out


CLASSIFICATION = {  # name -> side of the image
    "alexnet": 96, "vgg13": 64, "vgg16_bn": 64, "squeezenet1_0": 96, "squeezenet1_1": 96, "resnet34": 64,
    "resnet50": 64,
    "resnext101_32x8d": 64, "wide_resnet101_2": 64, "densenet121": 64, "densenet161": 64, "densenet169": 64,
    "googlenet": 96, "inception_v3": 96, "shufflenet_v2_x1_0": 64, "shufflenet_v2_x1_5": 64, "shufflenet_v2_x2_0": 64,
    "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mobilenet_v3_large": 64, "mnasnet0_75": 64, "mnasnet1_3": 64,
    "efficientnet_b1": 64, "efficientnet_b3": 64, "efficientnet_v2_s": 64, "efficientnet_v2_m": 64,
    "regnet_x_800mf": 64,
    "regnet_x_3_2gf": 64, "regnet_y_800mf": 64, "regnet_y_1_6gf": 64, "convnext_tiny": 64, "convnext_small": 64,
    "vit_b_32": 224, "vit_b_16": 224, "swin_t": 64, "swin_s": 64, "swin_v2_t": 64, "swin_v2_s": 64, "maxvit_t": 224,
}  # fmt: skip
VIDEO = {
    "r3d_18": (8, 48), "mc3_18": (8, 48), "r2plus1d_18": (8, 48), "s3d": (16, 224), "mvit_v1_b": (16, 224),
    "mvit_v2_s": (16, 224), "swin3d_t": (8, 64), "swin3d_b": (8, 64),
}  # fmt: skip
DETECTION: dict[str, tuple[int, type[nn.Module], dict[str, Any]]] = {
    "fasterrcnn_resnet50_fpn": (96, RegionHeads, {"trainable_backbone_layers": 5}),
    "fasterrcnn_mobilenet_v3_large_fpn": (96, RegionHeads, {"trainable_backbone_layers": 6}),
    "maskrcnn_resnet50_fpn_v2": (96, RegionHeads, {"trainable_backbone_layers": 5}),
    "keypointrcnn_resnet50_fpn": (96, RegionHeads, {"trainable_backbone_layers": 5}),
    "fcos_resnet50_fpn": (96, DenseHeads, {"trainable_backbone_layers": 5}),
    "retinanet_resnet50_fpn": (96, DenseHeads, {"trainable_backbone_layers": 5}),
    "ssd300_vgg16": (300, DenseHeads, {"trainable_backbone_layers": 5}),
    "ssdlite320_mobilenet_v3_large": (320, DenseHeads, {}),
}


def _net(name: str, **options: Any) -> nn.Module:
    return M.get_model(name, weights=None, **options)


def cases() -> Iterator[Case]:
    for name, side in CLASSIFICATION.items():
        plain = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield Case(
            f"tv/{name}",
            "torchvision",
            lambda name=name, plain=plain: _net(name, **plain),
            lambda b, side=side: torch.randn(b, 3, side, side),
        )
    for name in M.list_models(M.segmentation):
        yield Case(
            f"tv/{name}",
            "torchvision",
            lambda name=name: _net(name, weights_backbone=None, num_classes=21, aux_loss="101" in name or None),
            lambda b: torch.randn(b, 3, 64, 64),
        )
    for name, (side, wrap, options) in DETECTION.items():
        yield Case(
            f"tv/{name}",
            "torchvision",
            lambda name=name, wrap=wrap, options=options: wrap(_net(name, weights_backbone=None, **options)),
            lambda b, side=side: torch.randn(b, 3, side, side),
        )
    for name, (frames, side) in VIDEO.items():
        yield Case(
            f"tv/{name}",
            "torchvision",
            lambda name=name: _net(name),
            lambda b, frames=frames, side=side: torch.randn(b, 3, frames, side, side),
        )
    for name in ("raft_small", "raft_large"):
        yield Case(
            f"tv/{name}",
            "torchvision",
            lambda name=name: _net(name),
            lambda b: {
                "image1": torch.rand(b, 3, 128, 128),
                "image2": torch.rand(b, 3, 128, 128),
                "num_flow_updates": 2,
            },
        )
