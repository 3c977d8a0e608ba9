"""A run of a model that `fully_shard` (FSDP2) has shared out: it trains in shards, and its checkpoints hold shards.

    CHECKPOINT/shards/     weights, optimizer and averages, by torch.distributed.checkpoint

Everything here is a collective operation, and does nothing special for a model that is not sharded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from fxprune.errors import InputsError
from fxprune.graph.copies import deep_copy
from fxprune.graph.modules import require_whole, sharded
from fxprune.graph.sharding import full, resharded, shard_like, whole
from fxprune.pruning.order import Order
from fxprune.reporting.report import attach, is_pruned, report
from fxprune.training.average import Average
from fxprune.training.checkpoints import SHARDS
from fxprune.training.options import Training

M = TypeVar("M", bound=nn.Module)


def require_trainable(model: nn.Module, training: Training, order: Order) -> None:
    """Raise `InputsError` where a model cannot be trained as it is, or not as it is asked."""
    require_whole(model, shards=True)
    if not sharded(model):
        return
    kind = f"the parameters of this {type(model).__name__} are sharded (FSDP)"
    if order.inplace:
        raise InputsError(f"{kind}, which inplace=True cannot cut: leave it out, and fxprune.shard_like(small, model)")
    if training.mixed_precision == "fp16":
        raise InputsError(f'{kind}, and nobody scales their gradients for fp16: use mixed_precision="bf16"')
    if training.distillation is not None and training.distillation.projections:
        raise InputsError(f"{kind}, and nobody shares out projections=True: leave it out")


def working_copy(model: M) -> M:
    """A copy to train, or to learn from: in shards, if the model is."""
    return shard_like(whole(model), model) if sharded(model) else deep_copy(model)  # type: ignore[return-value]


def as_before(small: nn.Module, model: nn.Module) -> nn.Module:
    """What was made of a model: in shards, if that is."""
    return shard_like(small, model) if sharded(model) else small


def put_together(net: nn.Module) -> nn.Module:
    """The model whole, with its report."""
    made = whole(net)
    if made is not net and is_pruned(net):
        attach(made, report(net))
    return made


def whole_state(net: nn.Module) -> dict[str, Any]:
    """A state dict without shards."""
    return {name: full(value) for name, value in net.state_dict().items()}


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def write_shards(folder: Path, net: nn.Module, optimizer: Optimizer, average: Average | None) -> None:
    """Write what is in shards; each process its own."""
    save(_state(net, optimizer, average), checkpoint_id=folder / SHARDS)


def read_shards(folder: Path, net: nn.Module, optimizer: Optimizer, average: Average | None) -> None:
    """Go on with what `write_shards` wrote."""
    state = _state(net, optimizer, average)
    load(state, checkpoint_id=folder / SHARDS)
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def _state(net: nn.Module, optimizer: Optimizer, average: Average | None) -> dict[str, Any]:
    weights, states = get_state_dict(resharded(net), optimizer)
    return {"model": weights, "optimizer": states, "average": {} if average is None else dict(average.values)}
