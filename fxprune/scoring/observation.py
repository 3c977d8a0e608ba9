"""What flows through a model's contractions while it runs: the input and the output of every one with a weight.

    linear, matmul, einsum   out[..., o] = Σ_i in[..., i] W[o, i]
    convolution              the same over channels, at every place
    embedding                rows of a table: an output, but no input

Also told, where one asks for it: what is added to the output of a contraction next, as in a residual block.

Seen below autograd, at the level of ATen kernels, where it makes no difference whether a module, a functional call or
`nn.MultiheadAttention` uses a weight, or a part of one; a weight is known by its storage.  A weight that is computed on
the way (by weight norm, say) is not seen, unless who computes it says what it `stands_for` (masks do).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True, eq=False)
class Call:
    """One contraction at work.

    Attributes:
        weight: name of the parameter or buffer.
        reads: its axis that is summed over; -1 for an embedding.
        makes: its axis that the output's channels stand on, from position `start`; -1 where that is no one axis.
        groups: of a convolution.
        inputs: (n, channels, places), with `groups` times as many channels as `reads` has positions; None for an
            embedding.
        output: (n, channels, places...), or (n, channels) where there is one place.
        bias: name of the parameter that is added, one number for each position of `makes`; "" without.
        unfolded: what every output of a convolution is a sum over, (n, channels · taps, places of the output), in the
            order of the weight's own axes; None where that is `inputs`, or not known.
        fresh: whether the input and the output still are what they were; told where additions are.
        again: computes the output anew in its place, with the weight as it is now, if they are; told likewise.
    """

    weight: str
    reads: int
    makes: int
    start: int
    groups: int
    inputs: Tensor | None
    output: Tensor
    bias: str = ""
    unfolded: Callable[[], Tensor] | None = None
    fresh: Callable[[], bool] | None = None
    again: Callable[[Mapping[str, Tensor]], None] | None = None


Visit: TypeAlias = Callable[[Call], None]
Added: TypeAlias = Callable[[Call, Tensor], None]
Located: TypeAlias = tuple[str, Tensor]
Handler: TypeAlias = Callable[[Any, tuple[Any, ...], Any], list[Call]]


_observing: list[Observer] = []


def stands_for(computed: Tensor, weight: Tensor) -> None:
    """Say that a tensor just computed is used in a weight's place: observers at work take it for the weight."""
    for observer in _observing:
        if (found := observer.locate(weight)) is not None and found[1].shape == computed.shape:
            observer.hold(found[0], computed)


class Observer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, `visit` is called for every contraction with one of the tensors.

    `added` is called where the output of the last one is added, as it is, to another tensor of its shape: with that
    tensor, laid out like `Call.output`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], visit: Visit, added: Added | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.visit, self.added = visit, added
        self.last: tuple[Call, Tensor, int] | None = None  # alive, so that no other tensor has its place
        self.held: dict[int, list[Located]] = {}
        for name, t in tensors.items():
            self.hold(name, t)

    def __enter__(self) -> Observer:
        # PyTorch's fused transformer layers do all of their work inside one kernel, where nothing is seen.
        self.fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        _observing.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self.last = None  # which knows this observer, so that the batch would stay until cycles are collected
        _observing.remove(self)
        torch.backends.mha.set_fastpath_enabled(self.fused)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def handlers(self) -> Mapping[Any, Handler]:
        """What finds the contractions in a kernel's work, by kernel."""
        return _FORWARD

    def hold(self, name: str, tensor: Tensor) -> None:
        """Take a tensor for the weight of that name."""
        if tensor.numel():
            self.held.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if self.last is not None and func in _SUMS and not kwargs:
            self._told(*self.last, args[0], args[1])
        out = func(*args, **(kwargs or {}))
        handler = self.handlers().get(func)
        if handler is not None:
            for call in handler(self, args, out):
                if self.added is not None:
                    anew = Anew(self, func, args, out)
                    call = replace(call, fresh=anew.fresh, again=anew)
                self.visit(call)
                if self.added is not None and not out.is_inference():
                    self.last = (call, out, out._version)
        return out

    def _told(self, call: Call, out: Tensor, version: int, a: Any, b: Any) -> None:
        """Tell what is added to an output, if that is one of two tensors and nothing was written into it."""
        assert self.added is not None
        for own, other in ((a, b), (b, a)):
            if isinstance(own, Tensor) and isinstance(other, Tensor) and _is_all_of(own, out):
                self.last = None
                if own.shape == other.shape and out._version == version and _is_all_of(call.output, out):
                    laid = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype, device=out.device)
                    _same_place(laid, own, out).copy_(other)
                    self.added(call, _same_place(laid, call.output, out))
                return

    def locate(self, tensor: Any) -> Located | None:
        """The tensor that this one is a view of, with its name."""
        if not isinstance(tensor, Tensor):
            return None
        for name, whole in self.held.get(tensor.untyped_storage().data_ptr(), ()):
            first = whole.storage_offset()
            if first <= tensor.storage_offset() < first + whole.numel():
                return name, whole
        return None

    def _copied(self, args: tuple[Any, ...], out: Tensor) -> list[Call]:
        """A copy in another type (autocast makes them) stands for the weight."""
        found = self.locate(args[0])
        if found is not None and out.shape == found[1].shape and args[0].shape == out.shape:
            self.hold(found[0], out)
        return []

    def _convolved(self, args: tuple[Any, ...], out: Tensor) -> list[Call]:
        x, w, transposed, groups = args[0], args[1], args[6], args[8]
        found = self.locate(w)
        if found is None or found[1].shape != w.shape:
            return []
        reads, makes = (0, 1 if groups == 1 else -1) if transposed else (1, 0)
        bias = self._bias(args[2], w.shape[0] if makes == 0 else -1)
        plain = x.dim() == 4 and not transposed
        unfolded = partial(F.unfold, x, w.shape[2:], args[5], args[4], args[3]) if plain else None
        return [Call(found[0], reads, makes, 0, groups, x.flatten(2), out, bias, unfolded)]

    def _bias(self, bias: Tensor | None, size: int) -> str:
        found = self.locate(bias)
        return found[0] if found is not None and bias is not None and found[1].shape == bias.shape == (size,) else ""

    def _looked_up(self, args: tuple[Any, ...], out: Tensor) -> list[Call]:
        found = self.locate(args[0])
        return [] if found is None else [Call(found[0], -1, 1, 0, 1, None, out.reshape(-1, out.shape[-1]))]

    def _added(self, args: tuple[Any, ...], out: Tensor) -> list[Call]:
        return [
            replace(call, bias=self._bias(args[0], call.output.shape[-1])) for call in self._multiplied(args[1:], out)
        ]

    def _multiplied(self, args: tuple[Any, ...], out: Tensor) -> list[Call]:
        """a @ b, where one of them is a weight; the other is its input."""
        a, b = args[0], args[1]
        if (found := self.locate(b)) is not None:
            return self._product(found, a, b, out)
        if (found := self.locate(a)) is not None and b.dim() > 1:
            return self._product(found, b.mT, a.mT, out.mT)
        return []

    def _product(self, found: Located, x: Tensor, w: Tensor, out: Tensor) -> list[Call]:
        name, whole = found
        if w.dim() == 1 or (reads := _axis(whole, w, -2)) < 0:
            return []
        makes = _axis(whole, w, -1, part=True)
        offset = int(w.storage_offset() - whole.storage_offset())
        start = offset // whole.stride(makes) if makes >= 0 else 0
        return [Call(name, reads, makes, start, 1, x.reshape(-1, x.shape[-1], 1), out.reshape(-1, out.shape[-1]))]


class Backwards(Observer):  # type: ignore[no-untyped-call]
    """The same in a backward pass, where a contraction reads the gradient of what it gave."""

    def handlers(self) -> Mapping[Any, Handler]:
        """What finds the contractions in a kernel's work, by kernel."""
        return _BACKWARD

    def _convolved_back(self, args: tuple[Any, ...], out: Any) -> list[Call]:
        gradient, weight = args[0], args[2]
        found = self.locate(weight)
        if found is None or found[1].shape != weight.shape:
            return []
        return [Call(found[0], -1, -1, 0, 1, gradient.flatten(2), gradient)]


class Anew:
    """Computes an output once more, when its weight or bias has been written into.

    Copies of them in another type, as autocast makes them, are written into likewise.
    """

    def __init__(self, observer: Observer, func: Any, args: tuple[Any, ...], out: Tensor) -> None:
        self.observer, self.func, self.args, self.out = observer, func, args, out
        self.read = [a for a in args if isinstance(a, Tensor) and observer.locate(a) is None]
        self.versions = self._versions()

    def fresh(self) -> bool:
        """Whether nothing has been written into what it reads and gives."""
        return bool(self.versions) and self.versions == self._versions()

    def __call__(self, weights: Mapping[str, Tensor]) -> None:
        """Write the output anew, for the present values of weights, by name."""
        if not self.fresh():
            return
        for name, copy in filter(None, map(self.observer.locate, self.args)):
            if copy.data_ptr() != weights[name].data_ptr():
                copy.copy_(weights[name])
        self.out.copy_(self.func(*self.args))
        self.versions = self._versions()

    def _versions(self) -> list[int]:
        every = (*self.read, self.out)
        return [] if any(t.is_inference() for t in every) else [t._version for t in every]


def _is_all_of(view: Tensor, whole: Tensor) -> bool:
    """Whether a tensor is another one's elements, each once, in whatever order."""
    same = view.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr() and view.dtype == whole.dtype
    return (
        same
        and view.numel() == whole.numel()
        and all(s or n == 1 for n, s in zip(view.shape, view.stride(), strict=True))
    )


def _same_place(laid: Tensor, view: Tensor, whole: Tensor) -> Tensor:
    """The elements of `laid` that stand where those of a view of `whole` do."""
    return laid.as_strided(view.shape, view.stride(), view.storage_offset() - whole.storage_offset())


def _axis(whole: Tensor, view: Tensor, dim: int, part: bool = False) -> int:
    """The axis of a tensor that one of a view's is (with `part`, or a part of it); -1 if none is."""
    size, step = view.shape[dim], view.stride(dim)
    for d, (n, s) in enumerate(zip(whole.shape, whole.stride(), strict=True)):
        if s == step and (n == size or (part and size < n)):
            return d
    return -1


_aten = torch.ops.aten
_SUMS = {_aten.add.Tensor, _aten.add_.Tensor}
_FORWARD: dict[Any, Handler] = {
    _aten._to_copy.default: Observer._copied,
    _aten.clone.default: Observer._copied,
    _aten.convolution.default: Observer._convolved,
    _aten.embedding.default: Observer._looked_up,
    _aten.mm.default: Observer._multiplied,
    _aten.bmm.default: Observer._multiplied,
    _aten.addmm.default: Observer._added,
    _aten.baddbmm.default: Observer._added,
}
_BACKWARD: dict[Any, Handler] = {
    _aten.convolution_backward.default: Backwards._convolved_back,
    _aten.mm.default: Observer._multiplied,
    _aten.bmm.default: Observer._multiplied,
}
