"""Choose the smallest network of every timm module family, and the smallest input it runs on; writes timm.json.

python benchmarks/zoo/pick_timm.py [MODULE ...]     with names: choose these anew, keep the others
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import timm
import torch

PICKS = Path(__file__).with_name("timm.json")
TRIED = 12  # networks a family
SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 384)


def parameters(name: str) -> int:
    """Counted on the meta device; a model that cannot be built there comes last."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in timm.create_model(name).parameters())
    except Exception:  # noqa: BLE001  what a network does wrong is the result
        return 1 << 40


def _runs(name: str, channels: int, size: int, options: dict[str, Any]) -> bool:
    try:
        torch.manual_seed(0)
        model = timm.create_model(name, **options).eval()
        with torch.no_grad():
            out = model(torch.randn(2, channels, size, size))
        return bool(torch.isfinite(out).all())
    except Exception:  # noqa: BLE001  what a network does wrong is the result
        return False


def smallest_input(name: str) -> dict[str, Any] | None:
    """The first size that works, with `img_size` where the model takes it."""
    channels = timm.get_pretrained_cfg(name).input_size[0]
    for size in SIZES:
        for options in ({"img_size": size}, {}):
            if _runs(name, channels, size, options):
                return {"model": name, "channels": channels, "size": size, "options": options}
    return None


def pick(module: str) -> dict[str, Any] | None:
    """The smallest default network of a family that runs at a small size."""
    names = sorted(timm.list_models(module=module), key=parameters)
    found = (smallest_input(n) for n in names[:TRIED])
    return next((f for f in found if f), None)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    picks = json.loads(PICKS.read_text()) if PICKS.exists() else {}
    for module in sys.argv[1:] or timm.list_modules():
        if (found := pick(module)) is None:
            print(f"{module}: nothing runs")
            continue
        picks[module] = found
        print(module, found, flush=True)
        PICKS.write_text(json.dumps(dict(sorted(picks.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
