"""A backward pass that leaves no gradients behind: each is handed on the moment it is whole, and freed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from fxprune.errors import FxPruneError, InputsError
from fxprune.scoring.autograd import autograd_functions
from fxprune.scoring.parts import out_of_memory

Visit = Callable[[str, Tensor], None]


def backward(loss: Tensor, model: nn.Module, parameters: Mapping[str, nn.Parameter], visit: Visit) -> int:
    """Run the backward pass; `visit(name, gradient)` is called once for each parameter that the loss reaches,
    and every `.grad` is afterwards what it was.

    Reentrant checkpoints bring a gradient in parts: with these all are kept until the pass is over.

    Returns:
        How many parameters the loss reaches.

    Raises:
        InputsError: the pass fails.
    """
    reentrant = any(f is CheckpointFunction for f in autograd_functions(loss))
    visited: set[str] = set()

    def seen(name: str, gradient: Tensor) -> None:
        visited.add(name)
        with torch.no_grad():
            visit(name, gradient)

    kept = [(p, p.grad) for p in model.parameters()]
    for p, _ in kept:
        p.grad = None
    try:
        if reentrant:  # these refuse `inputs`
            loss.backward()  # type: ignore[no-untyped-call]
            for name, p in parameters.items():
                if p.grad is not None:
                    gradient, p.grad = p.grad, None
                    seen(name, gradient)
        else:
            with _handed_on(parameters, seen):
                loss.backward(inputs=list(parameters.values()))  # type: ignore[no-untyped-call]
    except FxPruneError:
        raise
    except Exception as e:
        if out_of_memory(e):
            raise
        raise InputsError(
            f"the backward pass of loss(model, batch) failed: {type(e).__name__}: {e}; check that "
            "loss(model, batch).backward() runs, once for each call of the loss"
        ) from e
    finally:
        for p, grad in kept:
            p.grad = grad
    return len(visited)


@contextlib.contextmanager
def _handed_on(parameters: Mapping[str, nn.Parameter], visit: Visit) -> Iterator[None]:
    """Within, a gradient that has been accumulated goes to `visit`, and the parameter keeps none."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def take(p: Tensor) -> None:
            gradient, p.grad = p.grad, None
            if gradient is not None:
                visit(name, gradient)

        return take

    pairs = parameters.items()
    handles = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in pairs]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
