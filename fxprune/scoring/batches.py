"""Batches: taken apart into samples, run through a model, described in messages.

Every tensor whose first axis is the batch's is cut along it, and every list of as many texts (prompts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.errors import FxPruneError, InputsError
from fxprune.graph.modules import as_inputs


def batch_size(batch: Any) -> int:
    """Length of the first axis of the first tensor of a batch (nested tuples, lists and mappings); 0 without one."""
    return next((len(t) for t in _leaves(batch) if isinstance(t, Tensor) and t.dim()), 0)


def empty(batch: Any) -> bool:
    """Whether a batch has tensors, and none of them holds a number: a mean over it would be NaN, a sum nothing."""
    tensors = [t for t in _leaves(batch) if isinstance(t, Tensor)]
    return bool(tensors) and not any(t.numel() for t in tensors)


def take(batch: Any, samples: Sequence[int]) -> Any:
    """A batch of some samples of another; what has another first axis (a number, a table) goes along whole."""
    n = batch_size(batch)

    def texts(x: Any) -> bool:
        return texts_of(x, n)

    def cut(leaf: Any) -> Any:
        if texts(leaf):
            return [leaf[i] for i in samples]
        if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != n:
            return leaf
        return leaf[torch.tensor(samples, device=leaf.device)]

    return pytree.tree_map(cut, _plain(batch), is_leaf=texts)


def texts_of(x: Any, n: int) -> bool:
    """Whether this is a list of a text for each of n samples."""
    return isinstance(x, (list, tuple)) and len(x) == n and all(isinstance(text, str) for text in x)


def fewer(batches: Sequence[Any], share: float) -> list[Any]:
    """The last batches, at most such a share of them but one at least; of a single batch the same share of samples."""
    n = max(1, int(share * len(batches)))
    if share < 1 and len(batches) == 1 and (size := batch_size(batches[0])) > 1:
        return [take(batches[0], range(max(1, int(share * size))))]
    return list(batches)[-n:]


def _leaves(batch: Any) -> list[Any]:
    return pytree.tree_leaves(_plain(batch))


def _plain(batch: Any) -> Any:
    """Mappings that torch's pytrees do not know (a tokenizer's answer) as dicts."""
    return dict(batch) if isinstance(batch, Mapping) and type(batch) is not dict else batch


def named(criterion: str, package: str = "") -> str:
    """A criterion as messages name it."""
    return f"criterion {criterion!r}{f' of package {package!r}' if package else ''}"


def missing(who: str, data: bool, loss: bool) -> str:
    """The one sentence that asks for data, a loss, or both."""
    wanted = [
        text
        for text, absent in (
            ("data=, an iterable of batches", data),
            ("loss=, a callable loss(model, batch) that returns a scalar tensor", loss),
        )
        if absent
    ]
    return f"{who} looks at the model at work: pass {', and '.join(wanted)}"


def blind(who: str, why: str) -> str:
    """The sentence about a loss that ignores its model."""
    return f"{who}: loss(model, batch) does not look at the model it is given: {why}; call model(...) in the loss"


def run(model: nn.Module, batch: Any) -> Any:
    args, kwargs = as_inputs(batch)
    return model(*args, **kwargs)


def describe(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"a dict of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"


def loss_on(loss: Callable[[nn.Module, Any], Any], model: nn.Module, batch: Any) -> float:
    """The loss of a batch.

    Raises:
        InputsError: the loss fails on it, or gives no number.
    """
    try:
        return float(loss(model, batch))
    except (FxPruneError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        raise InputsError(
            f"loss(model, batch) failed on a batch of type {type(batch).__name__} from data= (or held_out=): "
            f"{type(e).__name__}: {e}"
        ) from e


def require_some(batches: Any, name: str = "data") -> None:
    """Raise `InputsError` where batches in memory were given, and there are none, or one that stands for all."""
    if isinstance(batches, (Tensor, Mapping, str)):
        raise InputsError(
            f"{name}= is one {type(batches).__name__}; pass an iterable of batches, such as the list [batch]"
        )
    if isinstance(batches, (list, tuple)) and not batches:
        raise InputsError(f"{name}= holds no batches; pass at least one")
