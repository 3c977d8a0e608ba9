"""What a loss's autograd graph is made of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.autograd.function as once
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction


def autograd_functions(loss: Tensor) -> Iterator[type[torch.autograd.Function]]:
    """The `torch.autograd.Function` classes in a loss's graph."""
    todo = [loss.grad_fn]
    seen = set(todo)
    while todo:
        node = todo.pop()
        function = getattr(node, "_forward_cls", None)
        if function is not None:
            yield function
        for following, _ in node.next_functions if node is not None else ():
            if following not in seen:
                seen.add(following)
                todo.append(following)


def once_differentiable(loss: Tensor) -> str:
    """Which autograd function in the loss's graph has no second derivative, and why ("" if there is none).

    PyTorch means to raise in the second backward pass of such a function, but does not where the pass is asked for
    certain inputs (`torch.autograd.grad`): it then leaves the function's part out of H g without a word.
    """
    for function in autograd_functions(loss):
        if function is CheckpointFunction:
            return "a checkpoint is reentrant; use_reentrant=False has a second derivative"
        # The decorator returns a wrapper that lives in torch.autograd.function, whatever its name pretends.
        if getattr(getattr(function, "backward", None), "__globals__", {}).get("__name__") == once.__name__:
            return f"{getattr(function, '__name__', function)} is marked @once_differentiable"
    return ""
