"""Learning rates by the names that diffusers and transformers give their schedules."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fxprune.errors import InputsError


@functools.lru_cache(maxsize=8)
def named_rate(name: str, warmup: int, total: int) -> Callable[[int], float]:
    """The factor of the learning rate at a step (0, 1, ...), as `get_scheduler(name)` of diffusers has it, or where
    diffusers has none of that name or is not installed, of transformers.

    Args:
        name: such as "linear", "cosine_with_restarts" or "constant_with_warmup".
        warmup: steps in which the rate rises.
        total: all steps.

    Raises:
        InputsError: neither knows the name, neither is installed, or the schedule asks for more than steps.
    """
    found, known, failed = _libraries(), set[str](), ""
    if not found:
        raise InputsError(f"schedule={name!r} is one of diffusers or transformers, and neither is installed")
    for get_scheduler, names in found:
        known |= names
        if name in names:
            try:
                rate = torch.optim.SGD([torch.zeros(())], lr=1.0)
                made = get_scheduler(name, rate, num_warmup_steps=warmup, num_training_steps=total)
            except (ValueError, TypeError) as e:
                failed = f": {e}"
                continue
            lambdas: list[Any] = getattr(made, "lr_lambdas", [])
            if len(lambdas) == 1:
                factor: Callable[[int], float] = lambdas[0]
                return factor
            failed = ": it depends on more than the step"
    why = f" cannot be made of steps alone{failed}" if failed else f" is unknown; there are {', '.join(sorted(known))}"
    raise InputsError(f"schedule={name!r}{why}; or pass a function of the step")


def _libraries() -> list[tuple[Callable[..., object], set[str]]]:
    """`get_scheduler` of each that is installed, and the names that it knows."""
    found: list[tuple[Callable[..., object], set[str]]] = []
    try:
        from diffusers import optimization

        found.append((optimization.get_scheduler, {s.value for s in optimization.SchedulerType}))
    except ImportError:
        pass
    try:
        from transformers import SchedulerType, get_scheduler

        found.append((get_scheduler, {s.value for s in SchedulerType}))
    except ImportError:
        pass
    return found
