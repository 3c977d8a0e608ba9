"""What the test of pruning under FSDP starts: torchrun ... fsdp_runs.py DIR, or `results()` in the test's process."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import training_runs
from torch import Tensor, distributed, nn
from training_runs import IMAGES, loss

import fxprune

RUNS = {"soft": "gradflow", "iterative": "taylor", "group_lasso": "magnitude"}  # scheduler -> criterion
CUTS = ("gradflow", "wanda")
STEPS, AFTER = 20, 3  # as few as a soft mask takes


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own(batch: Tensor) -> Tensor:
    """This process's part of a batch."""
    return batch.chunk(world())[distributed.get_rank()] if world() > 1 else batch


def net() -> nn.Module:
    """Sharded, if there are several processes; without batch statistics and dropout, which differ between them."""
    made = training_runs.net()
    made.batch, made.drop = nn.Identity(), nn.Identity()
    if world() > 1:
        from torch.distributed.fsdp import fully_shard

        for layer in (made.stem, *made.blocks):
            fully_shard(layer)
        fully_shard(made)
    return made


def lone(ctx: Any) -> dict[str, Tensor]:
    """A criterion that knows nothing of other processes: it sums up its own batches."""
    return {n: p.detach().square() * ctx.batches[0].sum() ** 2 for n, p in ctx.parameters.items()}


def sums(tensors: Any) -> list[float]:
    return [float((t.full_tensor() if hasattr(t, "full_tensor") else t).detach().double().sum()) for t in tensors]


def cut(criterion: Any) -> dict[str, Any]:
    """One cut without training, and another model sharded as the first was."""
    model = net()
    data = [own(batch) for batch in IMAGES[:32].split(16)]
    small = fxprune.prune(
        model, criterion, 0.4, data=data, loss=loss, example_inputs=IMAGES[:2], progress=False, granularity="both"
    )
    told = {"plan": fxprune.report(small).plan.to_json(), "sharded": any(map(_sharded, small.parameters()))}
    if world() > 1:
        names = [n for n, _ in small.named_parameters()]
        fxprune.shard_like(small, model)
        assert [n for n, _ in small.named_parameters()] == names
        assert type(small.stem) is type(model.stem)
    with torch.no_grad():
        told["output"] = small(IMAGES[:4]).tolist()
    return told


def _sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def trained(scheduler: str, criterion: str) -> dict[str, Any]:
    """A loop of one's own with masks, whose optimizer and averages go on with the small model."""
    model = net()
    pruner = fxprune.Pruner(model, scheduler, criterion, 0.4, steps=STEPS, loss=loss, example_inputs=IMAGES[:2])
    optimizer, average = torch.optim.AdamW(model.parameters(), 1e-2), fxprune.Average(model, 0.9)
    losses = []
    for step in range(STEPS + AFTER):
        batch = own(IMAGES[16 * step % 64 :][:16])
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(model)
        losses.append(float(_mean(value.detach())))
        if step < STEPS:
            pruner.step(batch)
        if step == STEPS - 1:
            model = pruner.finish(optimizer, average, shard=world() > 1).train()
    told = {"plan": fxprune.report(model).plan.to_json(), "losses": losses, "weights": sums(model.parameters())}
    held = sums(s["exp_avg_sq"] for s in optimizer.state.values())
    return {**told, "state": held, "average": sums(average.values.values()), "sharded": world() > 1 and _all(model)}


def _mean(value: Tensor) -> Tensor:
    if world() > 1:
        distributed.all_reduce(value)
    return value / world()


def _all(model: nn.Module) -> bool:
    return all(map(_sharded, model.parameters()))


def results() -> dict[str, Any]:
    found = {criterion: cut(criterion) for criterion in CUTS}
    return {**found, "lone": cut(lone), **{s: trained(s, c) for s, c in RUNS.items()}}


def main(folder: str) -> None:
    distributed.init_process_group("gloo")
    told = results()
    Path(folder, f"told-{distributed.get_rank()}.json").write_text(json.dumps(told), encoding="utf-8")
    distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(sys.argv[1])
