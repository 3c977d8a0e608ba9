"""Short texts that tell whether a model, data, a loss or an option is that of before.

What is resumed carries them: a text that differs is another run.  They are the same in the next process, on every
device and for any number of threads.

    tensors     shape, type, the sum of all bits, and 64 samples at even distances: one changed number is seen
    functions   the name, the byte code (comments are not seen, another Python may be), defaults, and what it refers to:
                closures, globals, functions of its own module
    objects     the class and its attributes (of other modules' objects the public ones), with the code of its methods
    data        how many, and a few items at even distances; their shapes alone where two looks differ

Not seen: names that the code itself rebinds (a counter, say), functions and methods of other modules beyond their name,
what a generator has yet to give, and what lies outside Python.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import itertools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from fxprune.graph.sharding import class_of, full, resharded
from fxprune.scoring.batches import describe
from fxprune.scoring.randomness import same_start

SAMPLES = 64  # of a tensor
DIGITS = 10  # of a fingerprint
ITEMS = 16  # of the data
LONGEST = 60  # characters of a value that is its own fingerprint
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
_MODULE = ("training", "_parameters", "_buffers", "_modules")
_INIT = ("__init__", "__post_init__", "__new__")


def told(value: Any) -> str:
    """A value as a text for people that is another one where the value is: itself, or a name and a fingerprint."""
    shown = _shown(value)
    if isinstance(value, (bool, int, float, str, type(None))) and len(shown) <= LONGEST:
        return shown
    named = value.func if isinstance(value, functools.partial) else value
    name = getattr(named, "__qualname__", None) or type(value).__qualname__
    plain = len(shown) <= LONGEST and " at 0x" not in shown and not isinstance(value, (Tensor, np.ndarray, type))
    return f"{shown if plain else name} {digest(value)}"


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - any object may stand here
        return object.__repr__(value)


def digest(*values: Any) -> str:
    """A fingerprint of values of any kind."""
    return _hexed(piece for v in values for piece in _Walk().pieces(v))


def of_model(model: nn.Module) -> str:
    """A model's class with a fingerprint of all its parameters and buffers; in shards, the one that it has whole."""
    return f"{class_of(model).__qualname__} {_hexed(_weights(resharded(model)))}"


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is another than before, by name; empty where nothing is.  What was not written down counts as another."""
    return "; ".join(
        f"{name} was {was.get(name, 'not written down')} and now is {text}"
        for name, text in now.items()
        if was.get(name) != text
    )


def of_data(data: Any) -> str:
    """The kind and length of an iterable of batches, with a fingerprint of a few of them.

    Random numbers are as before afterwards.  What can be read only once is known by its kind alone.
    """
    if data is None or (isinstance(data, Iterator) and not isinstance(data, DataLoader)):
        return "none" if data is None else f"{type(data).__qualname__}, read once"
    source: Any = data
    how: tuple[Any, ...] = ()
    if isinstance(data, DataLoader):
        source = data.dataset
        sampler = data.batch_sampler or data.sampler
        how = (type(sampler).__qualname__, type(data.sampler).__qualname__, data.batch_size, data.drop_last)
    size = "" if (n := length(source)) is None else f" of {n}"
    return f"{type(data).__qualname__}{size} {digest(how, _seen(source))}"


def of_samples(data: Any) -> str:
    """The same of a `DataLoader` that batches its samples itself, but for how many are in a batch; "" for others."""
    if not isinstance(data, DataLoader) or type(data.batch_sampler) is not BatchSampler:
        return ""
    size = "" if (n := length(data.dataset)) is None else f" of {n}"
    how = (type(data.sampler).__qualname__, data.drop_last)
    return f"{type(data).__qualname__}{size} {digest(how, _seen(data.dataset))}"


def length(data: Any) -> int | None:
    """How many items there are, where the data tell."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _seen(source: Any) -> list[Any]:
    """Items of a source if two looks give the same, else their shapes."""
    looks = []
    for _ in range(2):
        with same_start():
            looks.append(_items(source))
    once, again = looks
    return once if digest(once) == digest(again) else [describe(item) for item in once]


def _items(source: Any) -> list[Any]:
    n = length(source)
    indexed = hasattr(source, "__getitem__") and not isinstance(source, (IterableDataset, Mapping))
    if indexed and n:
        return [source[i] for i in sorted({k * (n - 1) // (ITEMS - 1) for k in range(ITEMS)})]
    found: Iterator[Any] = iter(source)
    return [] if found is source else list(itertools.islice(found, ITEMS))


def _weights(model: nn.Module) -> Iterator[bytes]:
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        yield name.encode()
        yield from of_tensor(full(t))


def _hexed(pieces: Iterable[bytes]) -> str:
    made = hashlib.sha256()
    for piece in pieces:
        made.update(len(piece).to_bytes(8, "little") + piece)
    return made.hexdigest()[:DIGITS]


@torch.no_grad()
def of_tensor(t: Tensor) -> Iterator[bytes]:
    """What is hashed of a tensor."""
    t = t.detach()
    yield repr((tuple(t.shape), str(t.dtype))).encode()
    if t.is_meta or not t.numel() or t.layout is not torch.strided or t.is_quantized:
        return
    flat = t.resolve_conj().resolve_neg().reshape(-1)
    bits = flat.view(_BITS[t.element_size()])
    yield str(int(bits.sum(dtype=torch.int64))).encode()
    at = torch.linspace(0, len(flat) - 1, min(SAMPLES, len(flat)), dtype=torch.float64).long()
    sampled = flat[at.to(flat.device)].cpu()
    yield sampled.view(torch.uint8).numpy().tobytes()


class _Walk:
    """One pass over a value and what hangs on it; what was met before is not entered again."""

    def __init__(self) -> None:
        self.met: set[int] = set()
        self.module = ""  # of the first function or object
        self.held: list[Any] = []  # keeps what was met alive, so that no id is used twice

    def pieces(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, (bool, int, float, complex, str, bytes, type(None))) or value is Ellipsis:
            yield repr(value).encode()
            return
        if isinstance(value, (enum.Enum, range, slice, torch.dtype, torch.device)):
            yield str(value).encode()
            return
        if id(value) in self.met:
            return
        self.met.add(id(value))
        self.held.append(value)
        yield type(value).__qualname__.encode()
        yield from self._content(value)

    def _content(self, value: Any) -> Iterator[bytes]:
        if isinstance(value, Tensor):
            yield from of_tensor(value)
        elif isinstance(value, np.ndarray) and value.dtype != object:
            yield repr((value.shape, str(value.dtype))).encode() + np.ascontiguousarray(value).tobytes()
        elif isinstance(value, np.generic):
            yield repr(value.item()).encode()
        elif isinstance(value, Mapping):
            for k, v in value.items():
                yield from self.pieces(k)
                yield from self.pieces(v)
        elif isinstance(value, (list, tuple)):
            for v in value:
                yield from self.pieces(v)
        elif isinstance(value, (set, frozenset)):
            yield repr(sorted(_hexed(self.pieces(v)) for v in value)).encode()
        elif isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from self.pieces(value.__func__)
            yield from self.pieces(value.__self__)
        elif isinstance(value, functools.partial):
            yield from self.pieces([value.func, value.args, value.keywords])
        elif isinstance(value, (type, types.ModuleType)) or not hasattr(value, "__dict__"):
            yield str(getattr(value, "__qualname__", None) or getattr(value, "__name__", "")).encode()
        else:
            yield from self._object(value)

    def _function(self, function: types.FunctionType) -> Iterator[bytes]:
        self.module = self.module or function.__module__
        yield function.__qualname__.encode()
        if function.__module__ != self.module:
            return
        yield from self._code(function.__code__)
        yield from self.pieces([function.__defaults__, function.__kwdefaults__])
        rebound = _rebound(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name not in rebound:
                yield name.encode()
                yield from self.pieces(_held(cell))
        for name in sorted(_names(function.__code__) - rebound):
            if name in function.__globals__:
                yield name.encode()
                yield from self.pieces(function.__globals__[name])

    def _code(self, code: types.CodeType) -> Iterator[bytes]:
        yield code.co_code
        yield repr((code.co_names, code.co_varnames, code.co_freevars)).encode()
        for const in code.co_consts:
            yield from self._code(const) if isinstance(const, types.CodeType) else self.pieces(const)

    def _object(self, value: Any) -> Iterator[bytes]:
        cls = type(value)
        self.module = self.module or cls.__module__
        own = [f for c in cls.__mro__ if c.__module__ == self.module for f in vars(c).values()]
        methods = [f for f in own if isinstance(f, types.FunctionType)]
        for f in methods:
            yield from self.pieces(f)
        if isinstance(value, nn.Module):
            yield from _weights(value)
            yield from self.pieces(list(value.children()))
        rebound = {n for f in methods if f.__name__ not in _INIT for n in _rebound(f.__code__)}
        for name, held in vars(value).items():
            if name not in rebound and name not in _MODULE and (methods or name[0] != "_"):
                yield name.encode()
                yield from self.pieces(held)


def _held(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty
        return None


def _names(code: types.CodeType) -> set[str]:
    """Globals that a function reads, inner functions included."""
    loaded = {str(i.argval) for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return loaded.union(*(_names(c) for c in code.co_consts if isinstance(c, types.CodeType)))


def _rebound(code: types.CodeType) -> set[str]:
    """Names of closures, globals and attributes that code assigns to: its state, not what it is."""
    stores = ("STORE_DEREF", "STORE_GLOBAL", "STORE_ATTR")
    own = {str(i.argval) for i in dis.get_instructions(code) if i.opname in stores}
    return own.union(*(_rebound(c) for c in code.co_consts if isinstance(c, types.CodeType)))
