"""Are fewer MACs less time?  Dense, pruned by half of the MACs in three ways, and a Torch-Pruning result of equal MACs.

    python benchmarks/speed.py                                     # the CPU, one thread, a table a network
    python benchmarks/speed.py --device cuda --dtype bf16 --channels-last --compile --no-table --out results \\
        --nets "ddpm-cifar10-32,SD-1.5 UNet,DiT-XL/2" --ratios 0.3,0.5 --round-to auto --depth --energy --at-once

All models of a network are timed in turns, in one process; the fastest round counts.  `of the MAC speed-up` is how
much of the saved arithmetic arrives.  `predicted` is what fxprune's latency table said about that plan; it speaks of
the model without torch.compile.  A second table says which ops the time goes to.  Every layer is pruned alike
(scope="local"), as Torch-Pruning does it; that one can only take its own steps, so the run nearest to the MACs counts.
`--depth` takes whole blocks out, `--energy` counts the GPU's joules by NVML (`pip install "fxprune[energy]"`).
"""

from __future__ import annotations

import argparse
import copy
import csv
import fcntl
import itertools
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support import in_own_process
from torch import nn

import fxprune
from fxprune.graph.rules.op import op_name
from fxprune.planning.costs.stopwatch import take_turns
from fxprune.planning.latency import Left, latency_of
from fxprune.planning.latency import measured as measured_nodes

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PEER = "Torch-Pruning, nearest to these MACs"
LONG = 2.0  # seconds that a model runs for its energy, so that the counter's steps do not matter


def ddpm(batch: int) -> tuple[nn.Module, Any]:
    """The google/ddpm-cifar10-32 configuration."""
    from ddpm_cifar10 import unet

    return unet(), ((torch.randn(batch, 3, 32, 32), torch.tensor([10])), {})


def resnet50(batch: int) -> tuple[nn.Module, Any]:
    """timm's resnet50 at 224 pixels."""
    import timm

    return timm.create_model("resnet50", pretrained=False), ((torch.randn(batch, 3, 224, 224),), {})


def _dit(batch: int, heads: int, size: int, layers: int) -> tuple[nn.Module, Any]:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=size, in_channels=4, out_channels=8, num_layers=layers
    )
    labels = {"timestep": torch.full((batch,), 10), "class_labels": torch.full((batch,), 3)}
    return model, ((torch.randn(batch, 4, 32, 32),), labels)


def dit_s(batch: int) -> tuple[nn.Module, Any]:
    """DiT-S/2 on 32x32 latents."""
    return _dit(batch, 6, 64, 12)


def dit_xl(batch: int) -> tuple[nn.Module, Any]:
    """DiT-XL/2 on 32x32 latents."""
    return _dit(batch, 16, 72, 28)


def stable_diffusion(batch: int) -> tuple[nn.Module, Any]:
    """The UNet of Stable Diffusion 1.5 on 64x64 latents, with 77 tokens of text."""
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    return model, ((torch.randn(batch, 4, 64, 64), torch.tensor([10]), torch.randn(batch, 77, 768)), {})


NETS: dict[str, Callable[[int], tuple[nn.Module, Any]]] = {
    "ddpm-cifar10-32": ddpm,
    "resnet50": resnet50,
    "DiT-S/2": dit_s,
    "SD-1.5 UNet": stable_diffusion,
    "DiT-XL/2": dit_xl,
}
USUAL = ("ddpm-cifar10-32", "resnet50", "DiT-S/2")


def placed(value: Any, options: argparse.Namespace) -> Any:
    """A model or inputs on the device, in the number type and memory format asked for."""
    dtype, last = DTYPES[options.dtype], torch.channels_last if options.channels_last else torch.preserve_format
    if isinstance(value, nn.Module):
        return value.to(options.device, dtype).to(memory_format=last).eval()
    if isinstance(value, torch.Tensor):
        value = value.to(options.device, dtype) if value.is_floating_point() else value.to(options.device)
        return value.to(memory_format=last) if value.dim() == 4 else value
    if isinstance(value, dict):
        return {k: placed(v, options) for k, v in value.items()}
    return tuple(placed(v, options) for v in value)


def macs_of(model: nn.Module, inputs: Any) -> float:
    """Multiply-accumulates of one forward, counted by torch (which does not know the CPU's fused attention)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if inputs[0][0].is_cuda:
            model(*inputs[0], **inputs[1])
        else:
            with sdpa_kernel(SDPBackend.MATH):
                model(*inputs[0], **inputs[1])
    return counter.get_total_flops() / 2


def torch_pruned(model: nn.Module, inputs: Any, macs: float) -> nn.Module:
    """Torch-Pruning's `BasePruner` at the channel ratio that leaves about that many MACs, found by bisection."""
    low, high = 0.05, 0.9
    found: dict[float, nn.Module] = {}
    for _ in range(7):
        middle = (low + high) / 2
        pruned = torch_pruned_at(model, inputs, middle)
        left = macs_of(pruned, inputs)
        found[abs(left - macs)] = pruned
        low, high = (middle, high) if left > macs else (low, middle)
    return found[min(found)]


def torch_pruned_at(model: nn.Module, inputs: Any, ratio: float) -> nn.Module:
    """One run, the output layer ignored, as its examples do; a fresh copy of the model."""
    import torch_pruning as tp
    from diffusers.models.resnet import Downsample2D, Upsample2D

    model = copy.deepcopy(model)
    for p in model.parameters():
        p.requires_grad_(True)
    heads = {q: m.heads for m in model.modules() if hasattr(m, "to_q") for q in (m.to_q, m.to_k, m.to_v)}
    outputs = [m for name, m in model.named_modules() if name in ("conv_out", "fc", "proj_out_2")]
    pruner = tp.pruner.BasePruner(
        model,
        list(inputs[0]),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=outputs,
        num_heads=heads,
        forward_fn=lambda net, x: net(*x, **inputs[1]),
    )
    pruner.step()
    for m in model.modules():
        if isinstance(m, (Upsample2D, Downsample2D)):
            m.channels, m.out_channels = m.conv.in_channels, m.conv.out_channels
    return model.eval()


def plans(
    graph: fxprune.ChannelGraph, model: nn.Module, options: argparse.Namespace
) -> Iterator[tuple[str, fxprune.Plan]]:
    """The plans that are compared."""
    scores = fxprune.score(graph, model, "magnitude")
    ratio, widths = float(options.ratios), [w if w == "auto" else int(w) for w in options.round_to.split(",")]
    if options.depth:
        yield 'fxprune of="macs", blocks', fxprune.plan(graph, scores, ratio, "macs", granularity="block")
    for of, width in itertools.product(("macs",) if options.no_table else ("macs", "latency"), widths):
        told = f'fxprune of="{of}"' + (f", round_to={json.dumps(width)}" if width != 1 else "")
        yield told, fxprune.plan(graph, scores, ratio, of, scope="local", round_to=width)


def by_op(graph: fxprune.ChannelGraph, plan: fxprune.Plan) -> dict[str, float]:
    """Milliseconds of each kind of op, from the latency table."""
    _, laps = measured_nodes(graph, Left(plan.kept(graph), plan.norm_groups), latency_of(graph).table)
    out: dict[str, float] = {}
    for node, lap in zip(graph.traced.graph.nodes, laps, strict=True):
        name = op_name(node.target).removeprefix("aten::") if node.op == "call_function" else "inputs"
        out[name] = out.get(name, 0.0) + lap / 1e3
    return dict(sorted(out.items(), key=lambda x: -x[1]))


@contextmanager
def held(lock: str, how: int) -> Iterator[None]:
    """Within, a file is locked: in common with others (LOCK_SH), or alone, once all others have let go (LOCK_EX)."""
    with open(lock) as file:
        fcntl.flock(file, how)
        yield


def joules(calls: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """What one call of each takes, by the GPU's counter (NVML)."""
    from zeus.monitor import ZeusMonitor

    monitor = ZeusMonitor(gpu_indices=[torch.cuda.current_device()])
    found = {}
    for row, call in calls.items():
        monitor.begin_window(row)
        start, n = time.monotonic(), 0
        while time.monotonic() - start < LONG:
            call()
            torch.cuda.synchronize()
            n += 1
        found[row] = sum(monitor.end_window(row).gpu_energy.values()) / n
    return found


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All rows of one network, at one ratio."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with held(options.lock, fcntl.LOCK_SH), torch.no_grad():
        it = prepared(name, options)
    with held(options.lock, fcntl.LOCK_EX), torch.no_grad():
        seconds = take_turns(list(it.calls.values()), torch.device(options.device), options.rounds)
        used = joules(it.calls) if options.energy else {}
    timed = dict(zip(it.calls, seconds, strict=True))
    graph = None if options.no_table else it.graph
    rows = [_row(row, it.macs, timed, it.plans.get(row), graph) for row in it.calls]
    rows = [r | ({"joules": used[r["row"]]} if used else {}) for r in rows]
    return {"network": name, "ratio": float(options.ratios), "rows": rows, "failed": it.failed}


@dataclass(frozen=True)
class Prepared:
    """A network's rows, ready to run.

    Attributes:
        calls: a forward of each, compiled where asked.
        macs: of each.
        plans: of each that fxprune made.
        failed: why there is no peer.
    """

    graph: fxprune.ChannelGraph
    calls: dict[str, Callable[[], Any]]
    macs: dict[str, float]
    plans: dict[str, fxprune.Plan]
    failed: str


def prepared(name: str, options: argparse.Namespace) -> Prepared:
    """Prune and compile."""
    until = time.monotonic() + 60 * options.minutes
    model, inputs = NETS[name](options.batch)
    model, inputs = placed(model, options), placed(inputs, options)
    graph = fxprune.trace(model, inputs)
    models: dict[str, nn.Module] = {"dense": model}
    made: dict[str, fxprune.Plan] = {"dense": fxprune.plan(graph, fxprune.score(graph, model, "magnitude"), 0.0)}
    for row, plan in plans(graph, model, options):
        made[row], models[row] = plan, placed(fxprune.rewrite(model, graph, plan).model, options)
    macs = {row: macs_of(m, inputs) for row, m in models.items()}
    failed = ""
    if not options.no_peer:
        try:
            with torch.enable_grad():
                peer = torch_pruned(model, inputs, (1 - float(options.ratios)) * macs["dense"])
            models[PEER] = placed(peer, options)
            macs[PEER] = macs_of(models[PEER], inputs)
        except Exception as e:  # noqa: BLE001 - a peer that fails is a result
            failed = f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    torch._dynamo.config.recompile_limit = 64  # every model is of the same class
    run = {row: torch.compile(m, dynamic=False) if options.compile else m for row, m in models.items()}
    calls = {row: lambda net=net: net(*inputs[0], **inputs[1]) for row, net in run.items()}
    ready = {}
    for row, call in calls.items():
        if time.monotonic() < until:
            ready[row] = call
            call()
            print(f"{name}: {row} ready, {until - time.monotonic():.0f} s left", file=sys.stderr, flush=True)
    return Prepared(graph, ready, macs, made, failed)


def _row(
    row: str,
    macs: dict[str, float],
    seconds: dict[str, list[float]],
    plan: fxprune.Plan | None,
    graph: fxprune.ChannelGraph | None,
) -> dict[str, Any]:
    speed, fewer = min(seconds["dense"]) / min(seconds[row]), macs["dense"] / macs[row]
    out: dict[str, Any] = {
        "row": row,
        "macs_removed": 1 - macs[row] / macs["dense"],
        "ms": min(seconds[row]) * 1e3,
        "median_ms": statistics.median(seconds[row]) * 1e3,
        "speed_up": speed,
        "mac_speed_up": fewer,
        "share": speed / fewer,
    }
    if graph is not None and plan is not None:
        dense, after = latency_of(graph).at(Left(plan.kept(graph), plan.norm_groups))
        out |= {"predicted_speed_up": dense / after, "ops_ms": by_op(graph, plan)}
        out["prediction_error"] = (after / dense) * speed - 1
    return out


def show(result: dict[str, Any], compiled: bool) -> None:
    """Both tables of a network."""
    energy = "joules" in result["rows"][0]
    print("| model | MACs removed | ms | median ms | speed-up | of the MAC speed-up |", end="")
    print(" J | of dense |" if energy else " predicted | error |")
    print("|---|---|---|---|---|---|---|---|")
    for r in result["rows"]:
        told = "predicted_speed_up" in r and r["row"] != "dense"
        predicted = f"{r['predicted_speed_up']:.2f}x" if told else ""
        error = f"{r['prediction_error']:+.1%}" if told and not compiled else ""
        if energy:
            predicted, error = f"{r['joules']:.2f}", f"{r['joules'] / result['rows'][0]['joules']:.2f}"
        print(
            f"| {r['row']} | {r['macs_removed']:.1%} | {r['ms']:.2f} | {r['median_ms']:.2f} | {r['speed_up']:.2f}x "
            f"| {r['share']:.0%} | {predicted} | {error} |"
        )
    if result["failed"]:
        print(f"| Torch-Pruning | failed: {result['failed']} |")
    ops = [r for r in result["rows"] if "ops_ms" in r]
    if not ops:
        return
    print(f"\n| ms in the op | {' | '.join(r['row'] for r in ops)} |\n|---|{'---|' * len(ops)}")
    for op in list(ops[0]["ops_ms"])[:8]:
        cells = [f"{r['ops_ms'].get(op, 0):.2f}" for r in ops]
        print(f"| {op} | {' | '.join(cells)} |")


def write(results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """`speed-<device>-<type>....json` and `.csv` in the folder."""
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu"
    words = [device, options.dtype] + ["channels-last"] * options.channels_last + ["compiled"] * options.compile
    stem = "speed-" + "-".join("".join(c if c.isalnum() else "-" for c in w) for w in words)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in vars(options).items() if k not in ("one", "out", "lock")} | {"device_name": device}
    told = {"torch": torch.__version__, "settings": settings, "networks": results}
    (folder / f"{stem}.json").write_text(json.dumps(told, indent=1))
    with (folder / f"{stem}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        columns = ["row", "macs_removed", "ms", "median_ms", "speed_up", "mac_speed_up", "share", "predicted_speed_up"]
        columns += ["joules"]
        table.writerow(["network", "ratio", *columns])
        table.writerows(
            [r["network"], r["ratio"], *(x.get(c, "") for c in columns)] for r in results for x in r["rows"]
        )


def main() -> None:
    """Measure every network in a process of its own and print markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join(USUAL), help=f"comma-separated, of {', '.join(NETS)}")
    parser.add_argument("--ratios", default="0.5", help="shares of the cost that go, comma-separated")
    parser.add_argument("--round-to", default="1,auto", help="what widths are multiples of, comma-separated")
    parser.add_argument("--depth", action="store_true", help="take whole blocks out, too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="time torch.compile(model)")
    parser.add_argument("--batch", type=int, help="default: 4 on a CPU, 128 elsewhere")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--no-table", action="store_true", help="measure no latency table: no predictions, no latency rows"
    )
    parser.add_argument("--no-peer", action="store_true", help="without Torch-Pruning")
    parser.add_argument("--energy", action="store_true", help="joules of a forward, of a GPU")
    parser.add_argument("--at-once", action="store_true", help="prepare and compile all networks at a time")
    parser.add_argument("--minutes", type=float, default=1440.0, help="no model is compiled after them")
    parser.add_argument("--lock", help="a file; nothing is timed while others hold it (`flock --shared FILE ...`)")
    parser.add_argument("--out", help="folder for a JSON and a CSV file")
    parser.add_argument("--one", choices=list(NETS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.batch = options.batch or (4 if options.device == "cpu" else 128)
    if options.one:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(options.one, options)))
        return
    nets = options.nets.split(",")
    if unknown := [name for name in nets if name not in NETS]:
        raise SystemExit(f"--nets {unknown[0]!r} is unknown; choose from {', '.join(NETS)}")
    flags = ("channels_last", "compile", "no_table", "no_peer", "depth", "energy")
    passed = [f"--{k.replace('_', '-')}" for k in flags if getattr(options, k)]
    valued = ("device", "dtype", "batch", "threads", "rounds", "round_to", "minutes")
    passed += [f"--{k.replace('_', '-')}={getattr(options, k)}" for k in valued]
    asked = list(itertools.product(nets, options.ratios.split(",")))
    results: list[dict[str, Any]] = []
    with tempfile.NamedTemporaryFile() as own, ThreadPoolExecutor(len(asked) if options.at_once else 1) as pool:
        passed.append(f"--lock={options.lock or own.name}")
        every = pool.map(lambda one: in_own_process(__file__, one[0], *passed, f"--ratios={one[1]}"), asked)
        for (name, ratio), r in zip(asked, every, strict=True):
            print(
                f"\n{name}, {float(ratio):.0%}, batch {options.batch}, {options.device}, {options.dtype}\n", flush=True
            )
            if isinstance(r, str):
                print(f"failed: {r}")
                continue
            results.append(r)
            show(r, options.compile)
            if options.out:
                write(results, options)


if __name__ == "__main__":
    main()
