"""How long planning takes, beside Torch-Pruning, both in one run on one machine.

    python benchmarks/planning.py [--only NAME]

fxprune: trace, analysis, magnitude scores, plan and rewrite, without verification.  Torch-Pruning: building its graph
and pruning with `GroupMagnitudeImportance`, output layer ignored, head counts given where its documents ask for them.
`export`: `torch.export.export` of the network alone, the part of fxprune's time that PyTorch takes.  All three run in
one process for each network, in turns; the best of `--repeats` counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

from support import in_own_process

NETS = {
    "resnet18": 128,
    "mobilenetv3_small_100": 128,
    "vit_tiny_patch16_224": 224,
    "resnet50": 224,
    "convnext_tiny": 224,
    "vit_base_patch16_224": 224,
    "convnext_large": 224,
    "vit_large_patch16_224": 224,
}


def _head(model: Any) -> list[Any]:
    return [model.get_classifier()]


def _heads(model: Any) -> dict[Any, int]:
    """Fused qkv layers and their head counts, as Torch-Pruning's timm example passes them."""
    return {m.qkv: m.num_heads for m in model.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}


def run_fxprune(model: Any, x: Any) -> None:
    """Plan and rewrite in place of `model`, nothing run afterwards."""
    import fxprune

    fxprune.prune(model, "magnitude", 0.5, example_inputs=x, verify=False, progress=False)


def run_torch_pruning(model: Any, x: Any) -> None:
    """Build the dependency graph and prune."""
    import torch_pruning as tp

    for p in model.parameters():
        p.requires_grad_(True)
    pruner = tp.pruner.BasePruner(
        model,
        x,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.3,
        ignored_layers=_head(model),
        num_heads=_heads(model),
    )
    pruner.step()


def run_export(model: Any, x: Any) -> None:
    """Capture the network, no more."""
    import torch

    torch.export.export(model, (x,), strict=False)


def _seconds(call: Callable[[Any, Any], None], model: Any, x: Any) -> float:
    fresh = copy.deepcopy(model)
    start = time.perf_counter()
    call(fresh, x)
    return time.perf_counter() - start


def measure(name: str, repeats: int) -> dict[str, float]:
    """Seconds of all on one timm network; the first fxprune call pays for importing torch.export's machinery."""
    import timm
    import torch

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    x = torch.randn(1, 3, NETS[name], NETS[name])
    calls = {"fxprune": run_fxprune, "export": run_export, "torch_pruning": run_torch_pruning}
    rounds = [{what: _seconds(call, model, x) for what, call in calls.items()} for _ in range(repeats)]
    best = {what: min(seconds[what] for seconds in rounds) for what in calls}
    return {"params": float(sum(p.numel() for p in model.parameters())), "first": rounds[0]["fxprune"]} | best


def main() -> None:
    """Measure every network and print a markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(NETS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=list(NETS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options.one, options.repeats)))
        return
    print(
        "| network | parameters | first call s | fxprune s | of it export s | Torch-Pruning s | ratio | export alone |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in [options.only] if options.only else NETS:
        r = in_own_process(__file__, name, "--repeats", str(options.repeats))
        if isinstance(r, str):
            print(f"| {name} | failed: {r} |")
            continue
        print(
            f"| {name} | {r['params'] / 1e6:.0f} M | {r['first']:.1f} | {r['fxprune']:.2f} | {r['export']:.2f} "
            f"| {r['torch_pruning']:.2f} | {r['fxprune'] / r['torch_pruning']:.2f} "
            f"| {r['export'] / r['torch_pruning']:.2f} |"
        )


if __name__ == "__main__":
    main()
