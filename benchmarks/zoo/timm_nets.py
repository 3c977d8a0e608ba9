"""The smallest network of every timm module family (chosen by pick_timm.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from case import Case

PICKS = Path(__file__).with_name("timm.json")


def cases() -> Iterator[Case]:
    for module, p in json.loads(PICKS.read_text()).items():
        yield Case(
            f"timm/{module}",
            "timm",
            lambda p=p: timm.create_model(p["model"], **p["options"]),
            lambda b, p=p: torch.randn(b, p["channels"], p["size"], p["size"]),
            note=f"{p['model']} at {p['size']}",
        )
