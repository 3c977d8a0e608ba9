"""A run of a model that `fully_shard` (FSDP2) has shared out: it trains in shards, and its checkpoints hold shards.

    CHECKPOINT/shards/     weights, optimizer and averages, by torch.distributed.checkpoint

Everything here is a collective operation, and does nothing special for a model that is not sharded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from fxprune.errors import InputsError, SaveError
from fxprune.graph.copies import deep_copy
from fxprune.graph.modules import require_whole, sharded
from fxprune.graph.sharding import full, laid_out, resharded, shard_like
from fxprune.pruning.order import Order
from fxprune.scoring.entire import entire, kept
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
    if not sharded(model):
        return deep_copy(model)  # type: ignore[return-value]
    with entire(model) as net:
        return kept(shard_like(net, model))


def as_before(small: nn.Module, model: nn.Module) -> nn.Module:
    """What was made of a model, or of an entire copy of it: in shards, if that is."""
    return kept(shard_like(small, model)) if sharded(model) else small


def whole_state(net: nn.Module) -> dict[str, Any]:
    """A state dict without shards."""
    return {name: full(value) for name, value in net.state_dict().items()}


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def in_parts(folder: Path) -> bool:
    """Whether a checkpoint holds shards."""
    return (folder / SHARDS).exists()


def write_shards(folder: Path, net: nn.Module, optimizer: Optimizer, average: Average | None) -> None:
    """Write what is in shards; each process its own.

    Raises:
        SaveError: the disk of one of the processes refuses.
    """
    with _plainly(folder, "written"):
        save(_state(net, optimizer, average), checkpoint_id=folder / SHARDS)


def read_shards(folder: Path, net: nn.Module, optimizer: Optimizer, average: Average | None) -> None:
    """Go on with what `write_shards` wrote, on any number of processes, in shards or not.

    Raises:
        SaveError: it is damaged, or not there for one of the processes.
    """
    state = _state(net, optimizer, average)
    with _plainly(folder, "read"):
        load(state, checkpoint_id=folder / SHARDS)
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def share_out(held: Mapping[str, Any], net: nn.Module, optimizer: Optimizer, average: Average | None) -> None:
    """Go on with what is whole in a checkpoint: weights, optimizer and averages, in shards where the model is."""
    own = net.state_dict()
    net.load_state_dict({n: laid_out(t, own[n]) if n in own else t for n, t in held["model"].items()})
    optimizer.load_state_dict(held["optimizer"])
    for p, state in optimizer.state.items():
        state.update({k: laid_out(t, p) for k, t in state.items() if isinstance(t, Tensor) and t.dim()})
    if average is not None:
        values = held["average"]["values"]
        average.values.update({n: laid_out(values[n].to(t.device), t) for n, t in average.values.items()})


@contextlib.contextmanager
def _plainly(folder: Path, what: str) -> Iterator[None]:
    """Within, what torch.distributed.checkpoint could not do is an error of ours; its own is a `BaseException`."""
    try:
        yield
    except CheckpointException as e:
        rank, (error, _) = next(iter(sorted(e.failures.items())))
        raise SaveError(
            f"the checkpoint {folder} cannot be {what} by process {rank}: {type(error).__name__}: {error!s:.200}; all "
            "processes need the same folder, on a disk that they share"
        ) from e


def _state(net: nn.Module, optimizer: Optimizer, average: Average | None) -> dict[str, Any]:
    weights, states = get_state_dict(resharded(net), optimizer)
    return {"model": weights, "optimizer": states, "average": {} if average is None else dict(average.values)}
