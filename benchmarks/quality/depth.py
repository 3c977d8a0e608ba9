"""Blocks taken out beside blocks that a linear layer stands for, at equal multiply-accumulates:
`python benchmarks/quality/depth.py`.

    --tasks vit,dit   --ratios 0.3,0.5   --steps 60   --batch 16   --drawn 128   --weights 0

The ViT (8 layers of 64, patches of 2) is trained on scikit-learn's digits first, once for each of `--weights`; the DiT
is the emoji DiT of `checkpoints/`, whose images it draws itself where data.py has written none (then a loss can be
compared within the table alone).  Rows: "by scores" is granularity="block"; "linear" adds replace="linear"; "taken out"
are the blocks of the latter without the maps.  Latency is the fastest of several runs in turns.  Rows are appended to
`--out` (JSON lines).
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import data
import timm
import torch
from subjects import Subject, fitted, subject
from torch import nn

import fxprune
from fxprune.adapter import find_adapter
from fxprune.planning.costs.stopwatch import take_turns

OUT = Path(__file__).with_name("depth.jsonl")
SAMPLES = 32  # that maps are fitted on, and blocks scored with


def vit(seed: int) -> Subject:
    """timm's vision transformer on the digits."""
    torch.manual_seed(seed)
    split = data.load("digits")
    shape = {"img_size": split.train.shape[-1], "patch_size": 2, "in_chans": 1, "num_classes": 10}
    net = timm.create_model("vit_tiny_patch16_224", embed_dim=64, depth=8, num_heads=4, **shape)
    it = fitted(net, "vit-8x64", epochs=35, size=64, seed=seed)

    def calibration(samples: int, seed: int) -> Any:
        rows = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(seed))[: 8 * samples]
        pairs = zip(split.train[rows].split(samples), split.train_labels[rows].split(samples), strict=True)
        return list(pairs), it.loss

    return replace(it, calibration=calibration)


def trained(it: Subject, net: nn.Module, loss: Callable[..., Any], steps: int, size: int) -> nn.Module:
    """A copy after so many steps of AdamW, the same images for everyone."""
    torch.manual_seed(0)
    net = deepcopy(net).train()
    optimizer = torch.optim.AdamW(net.parameters(), 2e-4)
    feed = itertools.chain.from_iterable(itertools.repeat(it.loader(size)))
    for batch in itertools.islice(feed, steps):
        loss(net, batch).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


def rows(it: Subject, ratio: float, steps: int, size: int) -> Any:
    """One row a way of making it smaller."""
    batches, loss = it.calibration(SAMPLES, 0)
    given = {"example_inputs": it.example, "data": batches, "loss": loss, "progress": False}
    asked = {"ratio": ratio, "of": "macs", "granularity": "block", **given}
    linear = fxprune.prune(it.net, replace="linear", **asked)
    plan = fxprune.report(linear).plan
    small = {
        "by scores": fxprune.prune(it.net, **asked),
        "taken out": fxprune.apply(it.net, replace(plan), example_inputs=it.example),
        "linear": linear,
    }
    args, kwargs = fxprune.trace(it.net, it.example).traced.example
    nets = [it.net, *small.values()]
    with torch.no_grad():
        times = take_turns([lambda net=net: net(*args, **kwargs) for net in nets], torch.device("cpu"))
    for (name, net), seconds in zip(small.items(), times[1:], strict=True):
        gone = fxprune.report(net).plan
        before, after = it.figures(net), it.figures(trained(it, net, _to_train(it), steps, size))
        yield {
            "way": name,
            "ratio": ratio,
            "macs": _macs(it, net) / _macs(it, it.net),
            "blocks": len(gone.blocks),
            "latency": min(seconds) / min(times[0]),
            "untrained": before,
            "trained": after,
            "notes": fxprune.report(net).fitted,
        }


def _to_train(it: Subject) -> Callable[..., Any]:
    """The loss of a training step: with fresh noise each time, for a network that predicts noise."""
    made = it.loss or find_adapter(it.given).training_loss(it.given)
    assert made is not None
    return made


def _macs(it: Subject, net: nn.Module) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    args, kwargs = fxprune.trace(it.net, it.example).traced.example
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(*args, **kwargs)
    return float(counter.get_total_flops()) / 2


def main() -> None:
    """Append rows to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="vit,dit")
    parser.add_argument("--ratios", default="0.3,0.5")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--drawn", type=int, default=128)
    parser.add_argument("--weights", default="0", type=lambda x: [int(s) for s in x.split(",")], help="training seeds")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for task, weights in itertools.product(chosen.tasks.split(","), chosen.weights):
        it = vit(weights) if task == "vit" else subject(task, drawn=chosen.drawn)
        made: Any = [{"way": "dense", "untrained": it.figures(it.net)}]
        for row in itertools.chain(
            made, *(rows(it, float(r), chosen.steps, chosen.batch) for r in chosen.ratios.split(","))
        ):
            with chosen.out.open("a", encoding="utf-8") as file:
                same = {"task": task, "data": it.source, "steps": chosen.steps, "weights": weights}
                file.write(json.dumps({**same, **row}) + "\n")
            print(task, row, flush=True)


if __name__ == "__main__":
    main()
