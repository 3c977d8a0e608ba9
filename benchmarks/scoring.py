"""What scoring costs beside training, on the google/ddpm-cifar10-32 configuration (35.7 M parameters) at batch 8.

    python benchmarks/scoring.py            # two tables: time and memory, in multiples of one training step
    python benchmarks/scoring.py --width 32 --no-memory      # a quarter of the channels: 2.3 M parameters, minutes

A step is forward, backward and AdamW on the noise-prediction loss of the batch that is scored; `score` gets the same
batch and the traced graph.  "Coarse" is a refresh of `Soft(coarse=True)`, which needs a quarter of it.  "By autograd"
is the same saliency from all gradients at once, summed tensor by tensor, without a library.  In turns in one process,
the fastest of `--repeats` counts, on the CPU in processor seconds, which other work on the machine does not add to.
Memory is the peak of a process of its own, beside what it held with the model and the graph in place.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ddpm_cifar10 import CONFIG
from support import in_own_process

CRITERIA: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("magnitude:Magnitude", {}),
    "taylor": ("taylor:Taylor", {}),
    "gradflow exact": ("gradflow:GradFlow", {"method": "exact"}),
    "gradflow exact, coarse": ("gradflow:GradFlow", {"method": "exact"}),
    "gradflow finite difference": ("gradflow:GradFlow", {"method": "finite_difference"}),
    "gradflow finite difference, coarse": ("gradflow:GradFlow", {"method": "finite_difference"}),
    "fisher": ("fisher:Fisher", {}),
    "diff_pruning": ("diff_pruning:DiffPruning", {}),
    "wanda": ("wanda:Wanda", {}),
    "activation": ("activation:Activation", {}),
    "hrank": ("hrank:HRank", {}),
    "obs": ("obs:Obs", {}),
    "synflow": ("synflow:SynFlow", {}),
    "lamp": ("lamp:Lamp", {}),
    "fpgm": ("fpgm:Fpgm", {}),
}
BY_AUTOGRAD = {"taylor, by autograd": 1, "gradflow exact, by autograd": 2}  # derivatives
LIMITS = {"magnitude": 0.1, "taylor": 1.2, "wanda": 0.7}
LIMITS |= {"gradflow exact": 4, "gradflow finite difference": 4}
LIMITS |= {"gradflow exact, coarse": 2, "gradflow finite difference, coarse": 2}
MEASURED = ("step", "taylor", "gradflow exact", "gradflow finite difference")


def _unet(width: int) -> Any:
    """The configuration with so many channels on its first level, as many times more on the others."""
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    first, *_ = channels = CONFIG["block_out_channels"]
    return UNet2DModel(**{**CONFIG, "block_out_channels": tuple(c * width // first for c in channels)}).eval()


def _work(device: str, width: int) -> dict[str, Callable[[], Any]]:
    """The step and the criteria as calls without arguments."""
    import importlib

    import torch

    import fxprune
    from fxprune.adapter import find_adapter
    from fxprune.schedulers.soft import QUARTER
    from fxprune.scoring.batches import fewer

    model = _unet(width).to(device)
    graph = fxprune.trace(model)
    loss = find_adapter(model).loss_of(model)
    assert loss is not None
    batch = {
        "images": torch.rand(8, 3, 32, 32, device=device) * 2 - 1,
        "noise": torch.randn(8, 3, 32, 32, device=device),
        "timestep": torch.arange(8, device=device) * 125,
    }
    optimizers: list[Any] = []

    def step() -> None:
        optimizers[:] = optimizers or [torch.optim.AdamW(model.parameters(), lr=1e-6)]
        model.train()
        loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizers[0].step()
        optimizers[0].zero_grad()

    def scoring(name: str, where: str, options: dict[str, Any]) -> Callable[[], Any]:
        module, kind = where.split(":")
        criterion = getattr(importlib.import_module(f"fxprune.criteria.{module}"), kind)(**options)
        data = fewer([batch], QUARTER if name.endswith("coarse") else 1.0)
        return lambda: fxprune.score(graph, model, criterion, data=data, loss=loss)

    work = {"step": step, **{name: scoring(name, *how) for name, how in CRITERIA.items()}}
    return work | {name: lambda n=n: by_autograd(model, loss, batch, n) for name, n in BY_AUTOGRAD.items()}


def by_autograd(model: Any, loss: Callable[..., Any], batch: Any, derivatives: int) -> list[Any]:
    """Σ |θ g| of every row of every weight, or Σ |θ g| + T* |θ H g|."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    parameters = list(model.eval().parameters())
    with sdpa_kernel(SDPBackend.MATH if derivatives > 1 else list(SDPBackend.__members__.values())):
        g = torch.autograd.grad(loss(model, batch), parameters, create_graph=derivatives > 1)
        held = [x.detach() for x in g]
        with torch.no_grad():
            each = [(p * x).abs() for p, x in zip(parameters, held, strict=True)]
        if derivatives > 1:
            h = torch.autograd.grad(g, parameters, held)
            along = sum(torch.vdot(a.flatten(), b.flatten()) for a, b in zip(held, h, strict=True))
            step = sum(x.square().sum() for x in held) / abs(along)
            each = [e + step * (p * b).abs() for e, p, b in zip(each, parameters, h, strict=True)]
    return [e.detach().flatten(1).sum(1) if e.dim() > 1 else e.detach() for e in each]


def _seconds(call: Callable[[], Any], device: str) -> float:
    import torch

    clock = time.perf_counter if device == "cuda" else time.process_time
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def times(names: list[str], repeats: int, device: str, width: int) -> dict[str, float]:
    """Seconds of the step and of each criterion, the fastest of several rounds."""
    work = _work(device, width)
    best = dict.fromkeys(["step", *names], float("inf"))
    for _ in range(repeats + 1):  # the first round warms up
        for name in best:
            best[name] = min(best[name], _seconds(work[name], device))
    return best


def memory(name: str, device: str, width: int) -> dict[str, float]:
    """Peak GB of two runs of one piece of work, and what was held before."""
    import torch

    def held() -> float:
        """The peak since the last call, which starts anew."""
        if device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
            return peak
        status = Path("/proc/self/status").read_text()
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set becomes its size
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20

    call = _work(device, width)[name]
    held()
    before = held()
    call(), call()
    return {"before": before, "peak": held()}


def main() -> None:
    """Print both tables in markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[*CRITERIA, *BY_AUTOGRAD], default=[*CRITERIA, *BY_AUTOGRAD])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=CONFIG["block_out_channels"][0], help="of the first level")
    parser.add_argument("--no-memory", action="store_true", help="time only")
    parser.add_argument("--one", choices=MEASURED, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.one:
        print(json.dumps(memory(options.one, options.device, options.width)))
        return
    best = times(options.only, options.repeats, options.device, options.width)
    print("| work | s | steps | at most |\n|---|---|---|---|")
    for name, s in best.items():
        print(f"| {name} | {s:.2f} | {s / best['step']:.2f} | {LIMITS.get(name, '')} |", flush=True)
    if options.no_memory:
        return
    print("\n| work | peak GB | of it before | peak / that of the step |\n|---|---|---|---|")
    where = "--device", options.device, "--width", str(options.width)
    held: dict[str, Any] = {}
    for name in MEASURED:
        r = held[name] = in_own_process(__file__, name, *where)
        if isinstance(r, str):
            print(f"| {name} | failed: {r} |")
            continue
        print(f"| {name} | {r['peak']:.2f} | {r['before']:.2f} | {r['peak'] / held['step']['peak']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
