"""What a loss's autograd graph is made of."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch
import torch.autograd.function as once
from torch import Tensor
from torch.utils.checkpoint import CheckpointFunction

CPP = "torch::autograd::CppNode"  # a function that an extension wrote in C++


def autograd_nodes(loss: Tensor, until: Container[Any] = ()) -> Iterator[Any]:
    """The nodes of a loss's graph, each once; not those that lie behind the nodes of `until` only."""
    todo: list[Any] = [loss.grad_fn]
    seen = {None, *todo} if loss.grad_fn is not None else {None}
    while todo:
        node = todo.pop()
        if node is None:
            continue
        yield node
        if node in until:
            continue
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                todo.append(following)


def softmax_axes(loss: Tensor, outputs: Sequence[Tensor]) -> list[int | None]:
    """Along which axis the loss takes the log-softmax of each output, as it is or in another float type; None: of none.

    >>> logits = torch.zeros(2, 3, requires_grad=True) * 1.0
    >>> softmax_axes(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])), [logits])
    [1]
    """
    made_by = {(o.grad_fn, o.output_nr): k for k, o in enumerate(outputs) if o.grad_fn is not None}
    ends = {node for node, _ in made_by}
    axes: list[int | None] = [None] * len(outputs)
    for node in autograd_nodes(loss, until=ends):
        if node.name().startswith("LogSoftmaxBackward"):
            before = node.next_functions[0]
            while before[0] not in {None, *ends} and before[0].name() == "ToCopyBackward0":
                before = before[0].next_functions[0]
            if before in made_by:
                axes[made_by[before]] = _signed(node._saved_dim)
    return axes


def _signed(axis: int) -> int:
    return axis - 2**64 if axis >= 2**63 else axis  # autograd keeps -1 as an unsigned number


def autograd_functions(loss: Tensor) -> Iterator[type[torch.autograd.Function]]:
    """The `torch.autograd.Function` classes in a loss's graph."""
    for node in autograd_nodes(loss):
        function = getattr(node, "_forward_cls", None)
        if function is not None:
            yield function


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


def handwritten(loss: Tensor) -> str:
    """An autograd function in the loss's graph whose backward pass somebody wrote ("" if there is none).

    PyTorch differentiates such a backward pass a second time as it stands: what it computes from detached copies, or
    from values that `forward` kept on `ctx`, counts as constant, and nothing raises.
    """
    for node in autograd_nodes(loss):
        function = getattr(node, "_forward_cls", None)
        if function is not None:
            return f"{getattr(function, '__name__', function)} is an autograd.Function with a backward pass of its own"
        if node.name().startswith(CPP):
            return f"{node.name()} has a backward pass of its own"
    return ""
