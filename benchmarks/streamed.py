"""Peak memory and time of pruning a model from folder to folder, beside copying the folder.

    python benchmarks/streamed.py [--billions N] [--only CRITERION ...] [--folder DIR]

A Flux-shaped transformer (Flux's width, heads and text encoders, as many layers as make N billion parameters) with
random bfloat16 weights is written to shards of a gigabyte, pruned by `fxprune.prune_folder(..., 0.4)` with its proof,
and deleted.  Each criterion runs in a process of its own; "copy" is a copy of the folder, written through to the disk.
64 tokens of latents and 16 of text, so that the time is that of the weights; wanda's data are one such batch.
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
CRITERIA = ("magnitude", "wanda")


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
    """One batch of one: 64 tokens of latents and 16 of text."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator).to(torch.bfloat16)

    made = {"hidden_states": draw(1, 64, 64), "encoder_hidden_states": draw(1, 16, 4096)}
    made |= {"pooled_projections": draw(1, 768), "timestep": torch.tensor([0.5], dtype=torch.bfloat16)}
    return made | {"img_ids": torch.zeros(64, 3), "txt_ids": torch.zeros(16, 3), "return_dict": False}


def measure(criterion: str, source: Path) -> dict[str, Any]:
    """Seconds and the largest resident memory of this process, in GiB, before and after."""
    import fxprune

    given: dict[str, Any] = {"data": [inputs()], "loss": _loss} if criterion == "wanda" else {}
    before, start, busy = _peak(), time.perf_counter(), _busy()
    target = source.with_name(f"{source.name}-{criterion}")
    fxprune.prune_folder(source, target, criterion, 0.4, example_inputs=inputs(), progress=False, **given)
    os.sync()
    seconds, peak, busy = time.perf_counter() - start, _peak(), _busy() - busy
    size = sum(p.stat().st_size for p in target.glob("*.safetensors"))
    shutil.rmtree(target)
    return {"seconds": seconds, "busy": busy, "before": before, "peak": peak, "bytes": size}


def _loss(net: Any, batch: dict[str, Any]) -> Any:
    return net(**batch)[0].float().square().mean()


def _peak() -> float:
    """The largest resident memory since this program was started; `getrusage` would count that of who started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 2**20


def _busy() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def copied(source: Path) -> float:
    """Seconds that a copy takes."""
    os.sync()
    target, start = source.with_name(f"{source.name}-copy"), time.perf_counter()
    shutil.copytree(source, target)
    os.sync()
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def main() -> None:
    """Print a row for each criterion."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=6.0)
    parser.add_argument("--only", nargs="+", default=list(CRITERIA), choices=CRITERIA)
    parser.add_argument("--folder", type=Path, help="where there is room for three copies; None: a temporary one")
    parser.add_argument("--one", choices=CRITERIA, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.folder)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as made:
        source = Path(made) / "dense"
        source.mkdir()
        number = write(source, args.billions)
        copy = copied(source)
        print(f"{number:,} parameters in bfloat16, {2 * number / 2**30:.1f} GiB; a copy takes {copy:.0f} s\n")
        print("| criterion | seconds | of them busy | in copies | at most | peak | at most | before | left on disk |")
        print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for criterion in args.only:
            row = in_own_process(__file__, criterion, "--folder", str(source))
            if isinstance(row, str):
                print(f"| {criterion} | {row} |", flush=True)
                continue
            times = f"{row['seconds']:.0f} | {row['busy']:.0f} | {row['seconds'] / copy:.1f}"
            memory = f"{row['peak']:.2f} GiB | {LIMIT:.0f} GiB | {row['before']:.2f} GiB"
            print(
                f"| {criterion} | {times} | {LIMIT:.0f} | {memory} | {row['bytes'] / 2**30:.1f} GiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
