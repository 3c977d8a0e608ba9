"""Detectors: one-stage nets as YOLO's code writes them, and DETR's family of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers as T
from case import Case, Make
from torch import Tensor, nn
from transformers_nets import VISION, image, net
from yolo import C3, NUMBER, AnchorDetect, Both, C2f, C2fSplit, Conv, DecoupledDetect, Detect, Elan, Yolo


class DetrLike(nn.Module):
    """DETR in its few lines: a convolutional body, `nn.Transformer`, learned queries and positions."""

    def __init__(self, hidden: int = 32, queries: int = 6) -> None:
        super().__init__()
        self.body = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), Conv(32, 64, 3, 2))
        self.conv = nn.Conv2d(64, hidden, 1)
        self.transformer = nn.Transformer(hidden, 4, 1, 1, 64, batch_first=True)
        self.linear_class, self.linear_bbox = nn.Linear(hidden, NUMBER + 1), nn.Linear(hidden, 4)
        self.query_pos = nn.Parameter(torch.rand(queries, hidden))
        self.row_embed, self.col_embed = (nn.Parameter(torch.rand(20, hidden // 2)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.conv(self.body(x))
        height, width = h.shape[-2:]
        pos = torch.cat(
            [
                self.col_embed[:width].unsqueeze(0).repeat(height, 1, 1),
                self.row_embed[:height].unsqueeze(1).repeat(1, width, 1),
            ],
            dim=-1,
        )
        pos = pos.flatten(0, 1).unsqueeze(0)
        h = self.transformer(pos + 0.1 * h.flatten(2).transpose(1, 2), self.query_pos.expand(len(x), -1, -1))
        return self.linear_class(h), self.linear_bbox(h).sigmoid()


RESNET = {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "layer_type": "basic"}
OWN = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
LAYERS = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 6,
    "num_labels": 4,
}
REAL_TIME = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [24, 32, 48],
    "encoder_ffn_dim": 64,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 64,
    "decoder_layers": 2,
    "num_queries": 10,
    "decoder_in_channels": [32, 32, 32],
    "anchor_image_size": None,
    "num_labels": 4,
    "num_denoising": 0,
    "hidden_expansion": 0.5,
}


def body(*stages: int, kind: str = "ResNetConfig") -> dict[str, Any]:
    return OWN | {"backbone_config": getattr(T, kind)(**RESNET, out_features=[f"stage{s}" for s in stages])}


def seen(b: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(b, 3, 64, 64), "pixel_mask": torch.ones(b, 64, 64, dtype=torch.long)}


TRANSFORMERS: list[tuple[str, str, Callable[[], dict[str, Any]], Make]] = [
    ("rt-detr", "RTDetrForObjectDetection", lambda: REAL_TIME | body(2, 3, 4, kind="RTDetrResNetConfig"), image(64)),
    (
        "rt-detr-v2",
        "RTDetrV2ForObjectDetection",
        lambda: REAL_TIME | body(2, 3, 4, kind="RTDetrResNetConfig"),
        image(64),
    ),
    ("detr", "DetrForObjectDetection", lambda: LAYERS | body(4), image(64)),
    ("detr-mask", "DetrForObjectDetection", lambda: LAYERS | body(4), seen),
    ("table-transformer", "TableTransformerForObjectDetection", lambda: LAYERS | body(4), image(64)),
    ("conditional-detr", "ConditionalDetrForObjectDetection", lambda: LAYERS | body(4), seen),
    ("dab-detr", "DabDetrForObjectDetection", lambda: LAYERS | body(4) | {"hidden_size": 32}, image(64)),
    (
        "deformable-detr",
        "DeformableDetrForObjectDetection",
        lambda: LAYERS | body(2, 3, 4) | {"num_feature_levels": 3},
        image(64),
    ),
    (
        "deformable-detr-two-stage",
        "DeformableDetrForObjectDetection",
        lambda: (
            LAYERS
            | body(2, 3, 4)
            | {"num_feature_levels": 3, "two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 6}
        ),
        image(64),
    ),
    ("yolos", "YolosForObjectDetection", lambda: VISION | {"num_detection_tokens": 5, "image_size": [32, 32]}, image()),
]
NETS: dict[str, Callable[[], nn.Module]] = {
    "yolov5": lambda: Yolo(C3, AnchorDetect),
    "yolov6": lambda: Yolo(C3, DecoupledDetect, rep=True),
    "yolov7": lambda: Yolo(Elan, AnchorDetect),
    "yolov8": lambda: Yolo(C2f, Detect),
    "yolov8-split": lambda: Yolo(C2fSplit, Detect),
    "yolov10": lambda: Yolo(C2f, Both, attend=True),
    "yolov11": lambda: Yolo(C2f, lambda widths: Detect(widths, depthwise=True), attend=True),
    "yolox": lambda: Yolo(C3, DecoupledDetect),
    "detr-like": DetrLike,
}


def cases() -> Iterator[Case]:
    for name, make in NETS.items():
        yield Case(f"det/{name}", "detectors", make, lambda b: torch.randn(b, 3, 64, 64))
    for name, cls, config, given in TRANSFORMERS:
        yield Case(f"det/{name}", "detectors", lambda cls=cls, config=config: net(cls, config()), given, note=cls)
