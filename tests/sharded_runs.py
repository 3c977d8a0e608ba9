"""What the test of FSDP starts in processes of their own: torchrun ... sharded_runs.py DIR."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fxprune

DATA = torch.randn(3, 8, 6, generator=torch.Generator().manual_seed(0))
SCORED = ("magnitude", "taylor", "snip", "bn_scale")
WHOLE = ("wanda", "gradflow", "fisher", "diff_pruning", "obs", "random")  # which see more than shards show


class Net(nn.Module):
    """Widths that four processes do not divide, a shared weight, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 17), nn.Linear(17, 17), nn.Linear(17, 17)
        self.norm, self.last = nn.BatchNorm1d(17), nn.Linear(17, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        out: Tensor = self.last(torch.relu(self.norm(self.third(h))))
        return out


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    nn.init.normal_(made.norm.weight)
    return made


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out.square().mean()


def scored(model: nn.Module, criterion: str, data: list[Tensor]) -> tuple[fxprune.Scores, str]:
    """Scores, and the plan made of them; the graph is that of the whole model."""
    graph = fxprune.trace(net(), DATA[0])
    scores = fxprune.score(graph, model, criterion, data=data, loss=loss)
    return scores, fxprune.plan(graph, scores, 0.4).to_json()


class Claims:
    """A criterion that says that shards will do, and then asks for each sample's gradient."""

    sharded = True
    needs = frozenset({"data", "loss"})

    def __call__(self, ctx: Any) -> Any:
        return ctx.squared_gradients()


def parallel(shards: bool) -> nn.Module:
    """A tensor-parallel model, sharded besides."""
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1, torch.distributed.get_world_size()), mesh_dim_names=("data", "tensor"))
    made = parallelize_module(net(), mesh["tensor"], {"first": ColwiseParallel(), "second": RowwiseParallel()})
    return fully_shard(made, mesh=mesh["data"]) if shards else made  # type: ignore[return-value]


def refusals(model: nn.Module, own: list[Tensor]) -> dict[str, str]:
    """What is refused, and in which words."""
    from torch.distributed.fsdp import fully_shard

    graph = fxprune.trace(net(), DATA[0])
    given = {"data": own, "loss": loss, "example_inputs": DATA[0], "progress": False}
    calls: dict[str, Callable[[], Any]] = {
        "trace": lambda: fxprune.trace(model, DATA[0]),
        "inplace": lambda: fxprune.prune(model, "taylor", inplace=True, **given),
        "trained inplace": lambda: fxprune.prune(model, "taylor", inplace=True, steps=2, **given),
        "trained in fp16": lambda: fxprune.prune(
            model, "taylor", training=fxprune.Training(2, mixed_precision="fp16"), **given
        ),
        "latency": lambda: fxprune.prune(model, "taylor", of="latency", **given),
        "linear": lambda: fxprune.prune(model, granularity="block", replace="linear", **given),
        "claims": lambda: fxprune.score(graph, model, Claims(), data=own, loss=loss),
        "plain": lambda: fxprune.shard_like(net(), net()),
        "twice": lambda: fxprune.shard_like(fully_shard(net()), model),
        "tensor parallel": lambda: fxprune.score(graph, parallel(False), "magnitude"),
        "tensor parallel in shards": lambda: fxprune.prune(parallel(True), "taylor", **given),
        "fsdp1": lambda: fxprune.score(
            graph, FullyShardedDataParallel(net(), device_id=torch.device("cpu")), "magnitude"
        ),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except fxprune.FxPruneError as e:
            found[name] = str(e)
    return found


def main(folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo")
    rank, number = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = net()
    for layer in (model.first, model.second):
        fully_shard(layer)
    fully_shard(model)
    own = [batch.chunk(number)[rank] for batch in DATA]
    before = [p.full_tensor() for p in model.parameters()]  # type: ignore[attr-defined]
    told: dict[str, Any] = {}
    for criterion in (*SCORED, *WHOLE):
        scores, plan = scored(model, criterion, own)
        told[criterion] = {"plan": plan, "scores": {n: v.tolist() for n, v in scores.values.items()}}
        told[criterion]["notes"] = scores.notes
        assert all(p.grad is None for p in model.parameters())
    model(own[0])  # after which the parameters of the root are whole
    told["again"] = scored(model, "magnitude", own)[1]
    told["refused"] = refusals(model, own)
    after = [p.full_tensor() for p in model.parameters()]  # type: ignore[attr-defined]
    told["kept"] = all(map(torch.equal, before, after))
    Path(folder, f"told-{rank}.json").write_text(json.dumps(told), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(sys.argv[1])
