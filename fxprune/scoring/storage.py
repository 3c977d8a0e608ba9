"""Sets of tensors as large as the model: in memory while they are small, else where they take none of it.

up to `LARGE` bytes     where the model is
more, model on a CPU    in a file without a name, in the folder for temporary files (TMPDIR), if it has the room
more, model on a GPU    on the GPU while a quarter of what is free there holds them, else in the host's memory

A number is the same wherever it lies.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol

import torch
from torch import Tensor

from fxprune.errors import CriterionError
from fxprune.scoring import distributed as ranks
from fxprune.scoring.free_memory import free_memory

LARGE = 1 << 29  # bytes
SPARE = 1 << 30  # bytes that a file leaves free on its disk


class Store(Protocol):
    """Tensors by name; what `get` returns may be written to, and counts once it is `put`."""

    def __contains__(self, name: object) -> bool: ...
    def get(self, name: str, start: int = 0, stop: int | None = None) -> Tensor: ...
    def put(self, name: str, tensor: Tensor) -> None: ...


@dataclass(frozen=True)
class Form:
    """What a tensor is like: shape, type, and the device it is wanted on."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class InMemory:
    """Tensors on a device; None: wherever they are given."""

    def __init__(self, forms: Mapping[str, Form], device: torch.device | None = None) -> None:
        self._forms, self._device = forms, device
        self._held: dict[str, Tensor] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        held = self._held[name]
        part = held if not held.dim() or (not start and stop is None) else held[start:stop]
        return part.to(self._forms[name].device)

    def put(self, name: str, tensor: Tensor) -> None:
        self._held[name] = tensor if self._device is None else tensor.to(self._device)


class OnDisk:
    """Tensors in one temporary file, which the system drops with this object, or with the process."""

    def __init__(self, forms: Mapping[str, Form]) -> None:
        self._forms = forms
        self._file: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - lives as long as the object
        self._turn = threading.Lock()  # gradients come on threads of autograd's
        self._place: dict[str, int] = {}
        self._there: set[str] = set()
        end = 0
        for name, form in forms.items():
            self._place[name] = end
            end += form.bytes

    def __contains__(self, name: object) -> bool:
        return name in self._there

    def get(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        form = self._forms[name]
        shape = form.shape
        if shape:
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape = torch.Size((max(0, stop - start), *shape[1:]))
        out = torch.empty(shape, dtype=form.dtype)
        skipped = start * form.bytes // max(1, form.shape[0]) if form.shape else 0
        into = _bytes(out)
        with self._turn:
            self._file.seek(self._place[name] + skipped)
            while len(into):
                into = into[self._file.readinto(into) :]  # type: ignore[attr-defined]
        return out.to(form.device)

    def put(self, name: str, tensor: Tensor) -> None:
        form = self._forms[name]
        data = _bytes(tensor.detach().to("cpu", form.dtype).contiguous())
        with self._turn:
            try:
                self._file.seek(self._place[name])
                while len(data):
                    data = data[self._file.write(data) :]
            except OSError as e:
                raise CriterionError(
                    f"what is computed for {name} could not be kept in the folder for temporary files, "
                    f"{tempfile.gettempdir()}: {e}; set TMPDIR to one with {gib(_total(self._forms))} free"
                ) from e
        self._there.add(name)


def _bytes(tensor: Tensor) -> memoryview:
    data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(data)


def _total(forms: Mapping[str, Form]) -> int:
    return sum(form.bytes for form in forms.values())


def gib(n: float) -> str:
    """Bytes for people."""
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def forms_of(tensors: Mapping[str, Tensor], sums: bool = False) -> dict[str, Form]:
    """The forms of tensors, or (`sums`) of sums of them: of float32 at least."""

    def dtype(t: Tensor) -> torch.dtype:
        return torch.promote_types(t.dtype, torch.float32) if sums else t.dtype

    return {n: Form(t.shape, dtype(t), t.device) for n, t in tensors.items()}


def elsewhere(forms: Mapping[str, Form]) -> bool:
    """Whether tensors of such forms are kept in a file, or beside a GPU: where they take none of a model's memory."""
    size = _total(forms)
    devices = {form.device for form in forms.values()}
    if size <= LARGE or len(devices) != 1:
        return False
    device = devices.pop()
    if device.type != "cpu":
        free = free_memory(device)
        return free is not None and 4 * size > free
    return shutil.disk_usage(tempfile.gettempdir()).free > size + SPARE


def store(forms: Mapping[str, Form]) -> Store:
    """A place for tensors of such forms."""
    if not elsewhere(forms):
        return InMemory(forms)
    if next(iter(forms.values())).device.type == "cpu":
        return OnDisk(forms)
    return InMemory(forms, torch.device("cpu"))


class Sums(Mapping[str, Tensor]):
    """Sums by parameter name, zero where nothing was added; in float32 at least, wherever there is room for them.

    Args:
        parameters: whose shapes and devices the sums have.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.forms = forms_of(parameters, sums=True)
        self._store = store(self.forms)
        self._factor = 1.0

    def __iter__(self) -> Iterator[str]:
        return iter(self.forms)

    def __len__(self) -> int:
        return len(self.forms)

    def __getitem__(self, name: str) -> Tensor:
        return self.rows(name)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Positions of the first axis; a tensor that is not to be written to."""
        form = self.forms[name]
        if name not in self._store:
            zero = torch.zeros((), dtype=form.dtype, device=form.device).expand(form.shape)
            return zero[start:stop] if form.shape else zero.clone()
        found = self._store.get(name, start, stop)
        return found if self._factor == 1 else found * self._factor

    def add(self, name: str, tensor: Tensor, factor: float = 1.0) -> None:
        """Add a tensor, which is this object's from now on."""
        if name in self._store:
            held = self._store.get(name).add_(tensor, alpha=factor)
        else:
            held = tensor.to(self.forms[name].dtype)
            held = held if factor == 1 else held.mul_(factor)
        self._store.put(name, held)

    def settle(self, number: float) -> Sums:
        """Divided by a number, once they are those of all processes together."""
        if ranks.several():
            for name in self.forms:
                held = self.rows(name).contiguous()
                ranks.add_up([held])
                self._store.put(name, held)
        number = ranks.total(number, next((f.device for f in self.forms.values()), torch.device("cpu")))
        self._factor = 1 / number
        return self

    def scale(self, factor: float) -> None:
        """Multiply all sums."""
        self._factor *= factor


@dataclass(frozen=True, eq=False)
class Rows:
    """One of some sums, read a part at a time."""

    sums: Sums
    name: str

    @property
    def shape(self) -> torch.Size:
        return self.sums.forms[self.name].shape

    def __getitem__(self, rows: slice) -> Tensor:
        return self.sums.rows(self.name, rows.start or 0, rows.stop)


def norm(tensors: Mapping[str, Any]) -> float:
    """Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors.values()))
