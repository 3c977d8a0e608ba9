"""Prune trained diffusion networks by every method, train each the same number of steps, and measure.

    python benchmarks/quality/sweep.py --task digits [--ratios 0.4,0.55,0.7] [--seeds 0,1,2] [--steps 400] [--jobs 2]
    python benchmarks/quality/sweep.py --task ddpm --dense DIR --classifier DIR [--data FILE] [--device cuda]

Rows are appended to `--out` (JSON lines), each from a process of its own; what is there already is not run again.
`report.py` makes the tables and plots.  `--task` is digits (ships with the package), or one of the networks that
train.py trained: ddpm, ldm, dit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from rich.progress import Progress

RATIOS = (0.3, 0.44, 0.6, 0.75)
KEY = ("task", "of", "method", "ratio", "seed", "steps")


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("digits", "ddpm", "ldm", "dit"), required=True)
    parser.add_argument("--dense", type=Path, help="folder that train.py wrote (not for digits)")
    parser.add_argument("--vae", type=Path, help="folder that train.py --model vae wrote (for ldm)")
    parser.add_argument("--classifier", type=Path, required=True, help="folder that train.py --model classifier wrote")
    parser.add_argument("--data", default=None, help="the file that data.py wrote (not for digits)")
    parser.add_argument("--methods", help="comma-separated; all by default")
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)), help="shares of the cost that go")
    parser.add_argument("--of", choices=("params", "macs"), default="params", help="the cost")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=400, help="training steps in all, the same for every method")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=8, help="draws of noise and time for each held-out image")
    parser.add_argument("--watched", type=int, default=10**9, help="held-out images for the curve of the loss")
    parser.add_argument(
        "--bfloat16", action="store_true", help="train under autocast; pruning and measures stay float32"
    )
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("quality.jsonl"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- one run ----------------------------------------------------------------------------------------------------


def bench_of(chosen: argparse.Namespace) -> Any:
    """The dense network and what to measure with."""
    import data
    import nets
    import tasks
    from diffusers import DDPMScheduler
    from measure import Bench

    generator = torch.Generator().manual_seed(1234)
    split = data.load("digits" if chosen.task == "digits" else chosen.data or data.PREPARED).to(chosen.device)
    classifier = nets.load("classifier", chosen.classifier / "classifier").to(chosen.device)
    if chosen.task == "digits":
        from fxprune.demo.digits import load_pipeline

        pipe = load_pipeline()
        dense, scheduler = pipe.unet.eval(), pipe.scheduler
    else:
        part = "transformer" if chosen.task == "dit" else "unet"
        dense = nets.load(chosen.task, chosen.dense / part)
        scheduler = DDPMScheduler.from_pretrained(chosen.dense / "scheduler")
    dense = dense.to(chosen.device)
    decode = tasks.as_it_is
    images = split.held_out
    if chosen.task == "ldm":
        vae = nets.load("vae", chosen.vae / "vae").to(chosen.device)
        latents = tasks.latent(split, vae, 0)
        split, decode = latents.split, latents.decode
    shape = (chosen.samples, *split.train.shape[1:])
    labels = None
    if chosen.task == "dit":
        labels = torch.randint(len(split.categories), (chosen.samples,), generator=generator).to(chosen.device)
    noise = torch.randn(shape, generator=generator).to(chosen.device)
    return Bench(dense, scheduler, split, classifier, images, noise, labels, decode)


def drawn_by_dense(chosen: argparse.Namespace, bench: Any) -> Any:
    """The dense network's samples, drawn once for all runs of the same weights."""
    from data import CACHE

    weights = b"".join(p.detach().cpu().numpy().tobytes() for p in bench.dense.parameters())
    file = CACHE / f"{chosen.task}-{zlib.crc32(weights):08x}-{chosen.samples}-{chosen.device}.pt"
    if not file.exists():
        CACHE.mkdir(exist_ok=True)
        torch.save(bench.drawn(bench.dense), file)
    return torch.load(file)


def run(chosen: argparse.Namespace, row: dict[str, Any]) -> dict[str, Any]:
    """Prune and train by one method, and measure."""
    from diffusion import conditional, training_loss
    from measure import costs, energy, likeness, losses, widths
    from methods import METHODS
    from training import batches

    import fxprune

    bench, method, ratio, seed = bench_of(chosen), METHODS[row["method"]], row["ratio"], row["seed"]
    split = bench.split
    labelled = conditional(bench.dense)

    def loss(net: Any, batch: Any, **which: Any) -> Any:
        return training_loss(net, bench.scheduler, batch[0], batch[1] if labelled else None, **which)

    torch.manual_seed(seed)
    feed = batches(split.train, split.train_labels, chosen.batch, split.mirrored)
    data = [next(feed) for _ in range(2)]
    net, pruner = deepcopy(bench.dense), None
    start = time.perf_counter()
    how: dict[str, Any] = {"of": chosen.of, "data": data, "seed": seed, "progress": False}
    how["loss"] = partial(loss, gamma=method.gamma)
    if method.cut is not None:
        net = method.cut(net, ratio, chosen.of, data, loss, seed)
    elif method.scheduler is None:
        net = fxprune.prune(net, method.criterion, ratio, scope=method.scope, **how)
    else:
        pruner = fxprune.Pruner(net, method.scheduler, method.criterion, ratio, steps=chosen.steps, **how)
    at_once = losses(net.eval(), bench, 2, chosen.watched)["loss"]
    optimizer = torch.optim.AdamW(net.train().parameters(), chosen.rate)
    curve = []
    for step in range(chosen.steps):
        for group in optimizer.param_groups:
            falling = 0.5 * (1 + math.cos(math.pi * step / chosen.steps))
            group["lr"] = chosen.rate * min(1.0, (step + 1) / 20) * falling
        with torch.autocast(bench.noise.device.type, torch.bfloat16, enabled=chosen.bfloat16):
            value = loss(net, next(feed))
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if pruner is not None:
            with torch.random.fork_rng(devices=[bench.noise.device] if bench.noise.is_cuda else []):
                pruner.step(loss=value)
        if (step + 1) % max(1, chosen.steps // 10) == 0:
            with torch.random.fork_rng():
                curve.append((step + 1, losses(net.eval(), bench, 2, chosen.watched)["loss"]))
                net.train()
    seconds = time.perf_counter() - start
    small = net if pruner is None else pruner.finish()
    small = small.eval()
    drawn, joules = energy(lambda: bench.drawn(small))
    return {
        **row,
        **losses(small, bench, chosen.repeats),
        **likeness(drawn, drawn_by_dense(chosen, bench), bench),
        **costs(small, bench),
        "energy": None if joules is None else joules / chosen.samples,
        "widths": widths(small, bench.dense),
        "loss before training": at_once,
        "curve": curve,
        "run seconds": seconds,
        "device": torch.cuda.get_device_name() if chosen.device == "cuda" else platform.machine() + " CPU",
        "torch": torch.__version__,
        "batch": chosen.batch,
        "training dtype": "bfloat16" if chosen.bfloat16 else "float32",
    }


# ---- all runs ---------------------------------------------------------------------------------------------------


def wanted(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every run that is not in the file yet; the dense network first."""
    from methods import METHODS

    names = chosen.methods.split(",") if chosen.methods else list(METHODS)
    if unknown := [n for n in names if n not in METHODS]:
        raise SystemExit(f"no method is called {unknown[0]!r}; choose from {', '.join(METHODS)}")
    there = set()
    if chosen.out.exists():
        rows = [json.loads(line) for line in chosen.out.read_text().splitlines()]
        there = {tuple(r[k] for k in KEY) for r in rows if "error" not in r}
    ratios, seeds = map(float, chosen.ratios.split(",")), map(int, chosen.seeds.split(","))
    for seed, ratio, name in itertools.product(seeds, tuple(ratios), names):
        row = {
            "task": chosen.task,
            "of": chosen.of,
            "method": name,
            "ratio": ratio,
            "seed": seed,
            "steps": chosen.steps,
        }
        if tuple(row.values()) not in there:
            yield row


def main() -> None:
    """Run what is missing, `--jobs` at a time."""
    chosen = options()
    if chosen.one:
        torch.set_num_threads(1)
        print(json.dumps(run(chosen, json.loads(chosen.one))))
        return
    rows, lock = list(wanted(chosen)), Lock()
    if rows:
        drawn_by_dense(chosen, bench_of(chosen))
    with Progress() as progress, ThreadPoolExecutor(chosen.jobs) as pool:
        bar = progress.add_task(chosen.task, total=len(rows))

        def one(row: dict[str, Any]) -> None:
            command = [sys.executable, *sys.argv, "--one", json.dumps(row)]
            done = subprocess.run(command, capture_output=True, text=True)
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            out = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {**row, "error": last}
            with lock, chosen.out.open("a") as f:
                f.write(json.dumps(out) + "\n")
            progress.advance(bar)

        list(pool.map(one, rows))


if __name__ == "__main__":
    main()
