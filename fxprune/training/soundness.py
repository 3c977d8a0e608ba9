"""Whether what a run holds is finite: asked at each step, before a checkpoint is published, and at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.errors import InputsError
from fxprune.graph.modules import in_shards
from fxprune.scoring import distributed as ranks
from fxprune.scoring.sharded import own
from fxprune.training.average import Average
from fxprune.training.checkpoints import Checkpoints
from fxprune.training.options import Training
from fxprune.training.stream import Stream

SKIPS = 30  # steps in a row that fp16 may leave out while it looks for its scale
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@torch.no_grad()
def not_finite(named: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity; one pass over them, and one wait for the device."""
    kept = {n: t for n, t in named.items() if t.dtype in TYPES and t.numel() and not t.is_meta}
    if not kept:
        return []
    held = [own(t.detach()) for t in kept.values()]
    some = [t if t.numel() else t.new_zeros(1) for t in held]  # a process may have no part of a small tensor
    largest = torch._foreach_norm(some, float("inf"))
    device = largest[0].device
    fine = torch.stack([x.to(device, torch.float64).isfinite() for x in largest])
    if any(map(in_shards, kept.values())):
        everywhere = fine.double() - 1
        ranks.add_up([everywhere])
        fine = everywhere == 0
    return [n for n, ok in zip(kept, fine.tolist(), strict=True) if not ok]


def norm_of_gradients(net: nn.Module) -> Tensor:
    """The length of all gradients together, shape ().

    Raises:
        InputsError: no parameter has one.
    """
    found = [p.grad for p in net.parameters() if p.grad is not None]
    if not found:
        raise InputsError(
            "loss(model, batch) does not look at the model it is given: none of its parameters has a gradient; call "
            "model(...) in the loss, and return what autograd can follow"
        )
    return torch.nn.utils.get_total_norm(found)


class Watch:
    """Stops a run whose numbers are no longer finite, and says where that came from and what to lower.

    Args:
        model: as given, before any training.  Buffers that are not finite there (masks of -inf) may be so later.
        training: the options.
        stream: the batches, to name the one at fault.
        checkpoints: to name the last good one; None: there are none.

    Raises:
        InputsError: a weight is not finite.
    """

    def __init__(
        self, model: nn.Module, training: Training, stream: Stream, checkpoints: Checkpoints | None = None
    ) -> None:
        self.training, self.stream, self.checkpoints = training, stream, checkpoints
        self.skipped = 0  # steps in a row that the loss scaling of fp16 has left out
        if bad := not_finite(dict(model.named_parameters())):
            raise InputsError(
                f"{bad[0]} of this {type(model).__name__} is not finite before any training; load sound weights"
            )
        self.unbounded = frozenset(not_finite(dict(model.named_buffers())))

    def step(self, number: int, loss: float, length: float, rate: float, scaled: bool) -> None:
        """Look at a step before the optimizer takes it.

        Args:
            number: of the step.
            loss: of all processes.
            length: of the gradient.
            rate: of learning.
            scaled: whether the loss is scaled (fp16): a step whose gradient overflows is then left out.

        Raises:
            InputsError: one of them is not finite.
        """
        overflows = not math.isfinite(length)
        self.skipped = self.skipped + 1 if scaled and overflows else 0
        for what, value, bad in (
            ("loss", loss, not math.isfinite(loss)),
            ("length of the gradient", length, overflows and not 0 < self.skipped <= SKIPS),
        ):
            if bad:
                raise InputsError(f"the {what} of step {number} is {value}; {self._advice(rate)}")

    def state(self, number: int, net: nn.Module, average: Average | None, optimizer: torch.optim.Optimizer) -> None:
        """Look at all that a checkpoint or a result is made of.

        Raises:
            InputsError: some of it is not finite.
        """
        held = {"": {**dict(net.named_parameters()), **dict(net.named_buffers())}}
        held["the average of "] = {} if average is None else average.values
        states: Iterable[tuple[int, Mapping[str, Any]]] = enumerate(optimizer.state.values())
        held["the optimizer's "] = {f"{k} {i}": t for i, s in states for k, t in s.items() if isinstance(t, Tensor)}
        for what, named in held.items():
            if bad := [n for n in not_finite(named) if n not in self.unbounded]:
                raise InputsError(
                    f"{what}{bad[0]} is not finite after step {number}; {self._advice(optimizer.param_groups[0]['lr'])}"
                )

    def _advice(self, rate: float) -> str:
        last = self.checkpoints.latest() if self.checkpoints else None
        good = f"; the last good checkpoint is {last}" if last else ""
        return (
            f"lower the learning rate (learning_rate=, now {rate:g}) or clip= (now {self.training.clip}), and check "
            f"{self.stream.where} and the loss for NaN, a division by zero and the root of zero{good}"
        )
