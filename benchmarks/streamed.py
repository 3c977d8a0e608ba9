"""Peak memory and time of pruning a model from folder to folder, beside copying the folder.

    python benchmarks/streamed.py [--billions N] [--only CRITERION ...] [--folder DIR]

A Flux-shaped transformer (Flux's width, heads and text encoders, as many layers as make N billion parameters) with
random bfloat16 weights is written to shards of a gigabyte, pruned by `fxprune.prune_folder(..., 0.4)`, and deleted,
even after an error.  Each case runs in a process of its own, just after a copy of the folder, written through to the
disk; both begin with nothing of the folder in the system's cache.  The time is that of the call, with the import of the
model's class (torch is there already) and the flush of the result.  16 tokens of latents and 8 of text, so that it is
the time of the weights; wanda's data are one such batch.  Cases: magnitude as it comes, with its proof; with
`verify=False`; wanda with its proof.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from support import in_own_process

SHARD = 1 << 30  # bytes
LIMIT = 3.0  # GiB of memory, and times the time of a copy
ONE = 0.622e9  # parameters of one double-stream block and two single-stream ones
CASES: dict[str, dict[str, Any]] = {"magnitude": {}, "magnitude, not proven": {"verify": False}, "wanda": {}}


def empty(billions: float) -> Any:
    """The transformer without weights."""
    import diffusers
    import torch

    layers = max(1, round(billions * 1e9 / ONE))
    with torch.device("meta"):
        return diffusers.FluxTransformer2DModel(num_layers=layers, num_single_layers=2 * layers).to(torch.bfloat16)


def write(folder: Path, billions: float) -> int:
    """Random weights, a shard in memory at a time; how many parameters."""
    import torch
    from safetensors.torch import save_file

    net = empty(billions)
    net.save_config(folder)
    shards: list[dict[str, Any]] = [{}]
    for name, t in net.state_dict().items():
        if sum(x.nbytes for x in shards[-1].values()) > SHARD:
            shards.append({})
        shards[-1][name] = t
    where, generator = {}, torch.Generator().manual_seed(0)
    for k, shard in enumerate(shards):
        file = f"diffusion_pytorch_model-{k + 1:05}-of-{len(shards):05}.safetensors"
        made = {}
        for name, t in shard.items():
            made[name] = torch.empty(t.shape, dtype=t.dtype).normal_(std=0.02, generator=generator)
            where[name] = file
        save_file(made, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in net.state_dict().values())}, "weight_map": where}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return sum(p.numel() for p in net.parameters())


def inputs() -> dict[str, Any]:
    """One batch of one: 16 tokens of latents and 8 of text."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    made = {"hidden_states": draw(1, 16, 64), "encoder_hidden_states": draw(1, 8, 4096)}
    made |= {"pooled_projections": draw(1, 768), "timestep": torch.tensor([0.5], dtype=torch.bfloat16)}
    return made | {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(8, 3), "return_dict": False}


def measure(case: str, source: Path) -> dict[str, Any]:
    """Seconds and the largest resident memory of this process, in GiB, before and after."""
    import fxprune

    copy, copying = copied(source)
    example = inputs()  # torch is there now
    given: dict[str, Any] = {"data": [example], "loss": _loss} if case == "wanda" else dict(CASES[case])
    target = source.with_name(f"{source.name}-small")
    try:
        _forget(source)
        before, start, busy = _peak(), time.perf_counter(), _busy()
        criterion = case.partition(",")[0]
        fxprune.prune_folder(source, target, criterion, 0.4, example_inputs=example, progress=False, **given)
        os.sync()
        seconds, peak, busy = time.perf_counter() - start, _peak(), _busy() - busy
        size = sum(p.stat().st_size for p in target.glob("*.safetensors"))
    finally:
        shutil.rmtree(target, ignore_errors=True)
    made = {"seconds": seconds, "busy": busy, "before": before, "peak": peak, "bytes": size}
    return made | {"copy": copy, "copying": copying, "load": os.getloadavg()[0]}


def _loss(net: Any, batch: dict[str, Any]) -> Any:
    return net(**batch)[0].float().square().mean()


def _peak() -> float:
    """The largest resident memory since this program was started; `getrusage` would count that of who started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**20


def _busy() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def copied(source: Path) -> tuple[float, float]:
    """Seconds that a copy takes, and how many of them the processor is busy with it."""
    _forget(source)
    target, start, busy = source.with_name(f"{source.name}-copy"), time.perf_counter(), _busy()
    try:
        shutil.copytree(source, target)
        os.sync()
        return time.perf_counter() - start, _busy() - busy
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _forget(source: Path) -> None:
    """Have the system keep nothing of a folder in memory."""
    os.sync()
    for path in source.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _require_room(folder: Path, billions: float) -> None:
    """Exit unless the disk has room for the folder, and for a copy of it or what is cut and the result."""
    need, free = int(2e9 * billions * 2.3) + (1 << 30), shutil.disk_usage(folder).free
    if free < need:
        raise SystemExit(f"{folder} has {free / 2**30:.1f} GiB free, and {need / 2**30:.1f} GiB are needed")


def main() -> None:
    """Print a row for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=6.0)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--folder", type=Path, help="where there is room for three copies; None: a temporary one")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.folder)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        _require_room(Path(made), args.billions)
        source = Path(made) / "dense"
        source.mkdir()
        number = write(source, args.billions)
        print(f"{number:,} parameters in bfloat16, {2 * number / 2**30:.1f} GiB\n")
        print(
            "| case | s | busy s | a copy s | busy s | s in copies | at most | peak | at most | before | left | load |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
        for case in args.only:
            row = in_own_process(__file__, case, "--folder", str(source))
            if isinstance(row, str):
                print(f"| {case} | {row} |", flush=True)
                continue
            times = f"{row['seconds']:.0f} | {row['busy']:.0f} | {row['copy']:.0f} | {row['copying']:.0f}"
            ratio = f"{row['seconds'] / row['copy']:.1f} | {LIMIT:.0f}"
            memory = f"{row['peak']:.2f} GiB | {LIMIT:.0f} GiB | {row['before']:.2f} GiB"
            rest = f"{row['bytes'] / 2**30:.1f} GiB | {row['load']:.1f}"
            print(f"| {case} | {times} | {ratio} | {memory} | {rest} |", flush=True)


if __name__ == "__main__":
    main()
