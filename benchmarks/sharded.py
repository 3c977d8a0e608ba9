"""Peak memory of each process that prunes a model in shards (FSDP2), beside putting it together in memory.

    OMP_NUM_THREADS=1 python benchmarks/sharded.py [--processes N] [--layers N] [--only WAY]

Layers of 4096 × 4096 in float32 (64 MiB each) on the CPU, over gloo: a `Pruner` is made, one_shot prunes by `taylor`
where the shards lie, and `finish(shard=True)` proves and cuts.  "in a file" is what fxprune does; "in memory" what it
does where the folder for temporary files has no room; "before" is the peak with shards and their gradients.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTH = 4096
WAYS = ("in memory", "in a file")


def peak() -> float:
    """The largest resident memory of this process since the last call, in GiB; Linux."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def process(rank: int, processes: int, layers: int, where: str, folder: str) -> None:
    """One of the processes; writes down its figures."""
    import torch
    from torch import distributed, nn
    from torch.distributed.fsdp import fully_shard

    import fxprune
    from fxprune.scoring import entire

    os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    torch.set_num_threads(1)
    if where == "in memory":
        entire._on_disk = lambda model: False
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    made: list[Any] = []
    for _ in range(layers):  # one at a time, so that no process ever holds the whole
        torch.manual_seed(len(made))
        layer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        made.append(fully_shard(layer))
    model: Any = fully_shard(nn.Sequential(*made, nn.Linear(WIDTH, 8)))
    x = torch.randn(2, WIDTH)
    loss: Any = lambda net, batch: net(batch).square().mean()  # noqa: E731
    loss(model, x).backward()
    model.zero_grad()
    before, start = peak(), time.perf_counter()
    pruner = fxprune.Pruner(model, "one_shot", "taylor", 0.4, steps=1, loss=loss, example_inputs=x)
    begun = peak()
    pruner.step(x)
    stepped = peak()
    small = pruner.finish(shard=True)
    told = {"before": before, "made": begun, "step": stepped, "finish": peak(), "seconds": time.perf_counter() - start}
    told["left"] = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
    told["check"] = fxprune.report(small).checks[0].ok
    Path(folder, f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    distributed.destroy_process_group()


def main() -> None:
    """Print a row for each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--only", choices=WAYS, nargs="+", default=list(WAYS))
    options = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    size = options.layers * WIDTH * WIDTH * 4 / 2**30
    print(f"{size:.2f} GiB of weights, {options.processes} processes; the largest of them, GiB")
    print("| put together | before | made | step | finish | s | left | proven |")
    print("|---|---:|---:|---:|---:|---:|---:|---|")
    context = multiprocessing.get_context("spawn")
    for where in options.only:
        with tempfile.TemporaryDirectory() as folder:
            given = [(r, options.processes, options.layers, where, folder) for r in range(options.processes)]
            running = [context.Process(target=process, args=one) for one in given]
            for one in running:
                one.start()
            for one in running:
                one.join()
            if any(one.exitcode for one in running):
                print(f"| {where} | failed: exit codes {[one.exitcode for one in running]} |", flush=True)
                continue
            told = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("told-*.json")]
        most = {k: max(one[k] for one in told) for k in ("before", "made", "step", "finish", "seconds", "left")}
        row = " | ".join(f"{most[k]:.2f}" for k in ("before", "made", "step", "finish"))
        proven = all(one["check"] for one in told)
        print(f"| {where} | {row} | {most['seconds']:.0f} | {most['left']:.1%} | {proven} |", flush=True)


if __name__ == "__main__":
    main()
