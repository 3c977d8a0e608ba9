"""What the test of pruning under FSDP starts, in processes of their own, or by `results()` in the test's process.

python fsdp_runs.py first DIR RANK PROCESSES     all results; then a run that is killed in the middle
python fsdp_runs.py second DIR RANK PROCESSES    what was saved goes on
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
import training_runs
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from training_runs import IMAGES, Stopping, die, loader, loss

import fxprune
from fxprune import Training
from fxprune.integrations.accelerate import prepared
from fxprune.scoring import entire

RUNS = {"soft": "gradflow", "iterative": "taylor", "group_lasso": "magnitude"}  # scheduler -> criterion
CUTS = ("gradflow", "wanda")
STEPPED = {"soft": "gradflow", "one_shot": "wanda"}
STEPS, AFTER, SAVED = 20, 3, 12  # as few as a soft mask takes


def world() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def own(batch: Tensor) -> Tensor:
    """This process's part of a batch."""
    return batch.chunk(world())[distributed.get_rank()] if world() > 1 else batch


def net() -> nn.Module:
    """Sharded, if there are several processes; without batch statistics and dropout, which differ between them."""
    made = training_runs.net()
    made.batch, made.drop = nn.Identity(), nn.Identity()
    return shared_out(made)


def shared_out(made: nn.Module) -> nn.Module:
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


def trained(scheduler: str, criterion: str, save: str = "", resume: str = "") -> dict[str, Any]:
    """A loop of one's own with masks, whose optimizer and averages go on with the small model.

    Args:
        save: folder for a checkpoint of the step SAVED.
        resume: folder to go on from.
    """
    model = net()
    pruner = fxprune.Pruner(model, scheduler, criterion, 0.4, steps=STEPS, loss=loss, example_inputs=IMAGES[:2])
    optimizer, average = torch.optim.AdamW(model.parameters(), 1e-2), fxprune.Average(model, 0.9)
    losses = []
    if resume:
        kept(resume, model, optimizer, pruner, average, load=True)
    for step in range(SAVED if resume else 0, STEPS + AFTER):
        batch = own(IMAGES[16 * step % 64 :][:16])
        value = loss(model, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(model)
        losses.append(float(_mean(value.detach())))
        if step < STEPS:
            pruner.step(batch)
        if save and step == SAVED - 1:
            kept(save, model, optimizer, pruner, average)
        if step == STEPS - 1:
            model = pruner.finish(optimizer, average, shard=world() > 1).train()
    told = {"plan": fxprune.report(model).plan.to_json(), "losses": losses, "weights": sums(model.parameters())}
    held = sums(s["exp_avg_sq"] for s in optimizer.state.values())
    return {**told, "state": held, "average": sums(average.values.values()), "sharded": world() > 1 and _all(model)}


def kept(folder: str, model: nn.Module, optimizer: Any, pruner: Any, average: Any, load: bool = False) -> None:
    """A checkpoint by torch.distributed.checkpoint; masks and batches are each process's own."""
    weights, states = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": states, "average": dict(average.values)}
    own = Path(folder, f"own-{distributed.get_rank()}.pt")
    if not load:
        dcp.save(state, checkpoint_id=f"{folder}/shards")
        torch.save({"pruner": pruner.state_dict(), "taken": average.taken}, own)
        return
    dcp.load(state, checkpoint_id=f"{folder}/shards")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    held = torch.load(own, weights_only=True)
    pruner.load_state_dict(held["pruner"])
    average.taken = held["taken"]


def steps(folder: str | None = None, at: int = 1000) -> dict[str, Any]:
    """`prune(steps=)` of a model with batch statistics and dropout, which are each process's own."""
    training = Training(20, after=4, ema_decay=0.9, checkpoint_dir=folder, checkpoint_every=6)
    counted = Stopping(at, die)
    small = training_runs.run(training, how=counted, model=shared_out(training_runs.net()), data=loader(4))
    return {**told_by(small), "running": sums([small.batch.running_mean]), "taken": 1000 - counted.left}


def accelerated(folder: str = "", resume: bool = False) -> dict[str, Any]:
    """A loop with accelerate, under its FSDP plugin if there are several processes; it saves after the step SAVED."""
    accelerator = Accelerator(cpu=True)
    if world() > 1:
        own_kind = {"auto_wrap_policy": "transformer_based_wrap", "transformer_cls_names_to_wrap": ["Conv2d"]}
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False, **own_kind)
        # accelerate takes its plugin on GPUs alone
        PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    model = training_runs.net()
    model.batch, model.drop = nn.Identity(), nn.Identity()
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-2))
    pruning = prepared(accelerator, model, optimizer, steps=STEPS, loss=loss, example_inputs=IMAGES[:2])
    if resume:
        accelerator.load_state(f"{folder}/accelerate")
    losses = []
    for step in range(SAVED if resume else 0, STEPS + AFTER):
        batch = own(IMAGES[16 * step % 64 :][:16])
        value = loss(pruning.model, batch)
        accelerator.backward(value)
        optimizer.step()
        optimizer.zero_grad()
        pruning.step(batch)
        losses.append(float(_mean(value.detach())))
        if folder and not resume and step == SAVED - 1:
            accelerator.save_state(f"{folder}/accelerate")
    small = pruning.model
    told = {"plan": fxprune.report(small).plan.to_json(), "losses": losses, "weights": sums(small.parameters())}
    whole = accelerator.get_state_dict(small)
    accelerator.free_memory()
    AcceleratorState._reset_state(reset_partial_state=True)
    return {
        **told,
        "sharded": _all(small),
        "saved": sorted(whole) if world() == 1 or distributed.get_rank() == 0 else [],
    }


def told_by(small: nn.Module) -> dict[str, Any]:
    made = fxprune.report(small)
    held = {"plan": made.plan.to_json(), "losses": made.history.column("loss").tolist()}
    return {**held, "weights": sums(small.parameters()), "sharded": any(map(_sharded, small.parameters()))}


def plain_steps(scheduler: str, criterion: str) -> dict[str, Any]:
    """`prune(steps=)` whose batches together are those of one process."""
    data = loader(16 // world(), shuffle=False)
    how = {"how": loss, "model": net(), "data": data, "criterion": criterion}
    return told_by(training_runs.run(Training(20, after=2, ema_decay=0.9), scheduler, **how))


def _mean(value: Tensor) -> Tensor:
    if world() > 1:
        distributed.all_reduce(value)
    return value / world()


def _all(model: nn.Module) -> bool:
    return all(map(_sharded, model.parameters()))


def results(folder: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {criterion: cut(criterion) for criterion in CUTS}
    found["lone"] = cut(lone)
    for scheduler, criterion in RUNS.items():
        found[scheduler] = trained(scheduler, criterion, save=folder if scheduler == "soft" else "")
    found["accelerate"] = accelerated(folder)
    return {**found, "steps": {s: plain_steps(s, c) for s, c in STEPPED.items()}}


def main(which: str, folder: str, rank: int, processes: int) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{which}"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    runs = f"{folder}/runs"
    if which == "first":
        entire._on_disk = lambda model: True  # in the further run what is put together lies in memory
        told = {**results(folder), "uninterrupted": steps()}
    else:
        told = {
            "loop": trained("soft", RUNS["soft"], resume=folder),
            "run": steps(runs),
            "accelerate": accelerated(folder, True),
        }
    Path(folder, f"{which}-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    if which == "first":
        steps(runs, at=15)  # the last checkpoint is that of step 12
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
