"""A stranger's model is built here: nothing is asked, nothing fetched, no program started, and no more than it weighs.

    isolated()               audit events of this thread for the network, programs and prompts are refused
    within(names, elements)  building stops once it registers more than the folder lists, or takes longer than that

Constructors of third parties run inside; what they swallow did not happen all the same.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.nn.modules import module as registration
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.errors import SaveError

_REFUSED = """socket.connect socket.getaddrinfo socket.gethostbyname socket.gethostbyaddr socket.sendto socket.sendmsg
socket.bind subprocess.Popen os.system os.exec os.posix_spawn os.spawn os.startfile builtins.input
builtins.input/result urllib.Request"""
REFUSED = frozenset(_REFUSED.split())
NAMES, MODULES = 1000, 20  # names more than twice those listed; modules for every name
ELEMENTS, TIMES = 2**26, 16  # elements that any model may compute, and how often those listed
SECONDS, A_NAME, A_SECOND = 8.0, 0.02, 1e8  # of the thread's own time: for any model, for a name, elements in one
FEW = 2**16  # elements, and numbers given to an op, that need no second look
EMPTY = ("aten::empty", "aten::new_empty")  # takes no memory before it is written
_thread = threading.local()


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Within, this thread reaches no network, starts no program, and asks nobody."""
    _install()
    before = getattr(_thread, "isolated", False)
    _thread.isolated = True
    try:
        with _hub_offline():
            yield
    finally:
        _thread.isolated = before


@functools.cache
def _install() -> None:
    """Audit hooks cannot be taken out again; outside of `isolated` this one does nothing."""

    def refuse(event: str, _: Any) -> None:
        if event in REFUSED and getattr(_thread, "isolated", False):
            raise PermissionError(f"a saved model reached for {event} while it was built, which fxprune refuses")

    sys.addaudithook(refuse)


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """huggingface_hub told so as well, lest it wait and try again."""
    constants = sys.modules.get("huggingface_hub.constants")
    before = getattr(constants, "HF_HUB_OFFLINE", None)
    if constants is None or before is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]


# ---- no more than it weighs --------------------------------------------------------------------------------------


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what one thread registers and computes, and stops it."""

    def __init__(self, names: int, elements: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names, self.modules = 2 * names + NAMES, MODULES * (2 * names + NAMES)
        self.elements = ELEMENTS + TIMES * elements
        self.thread = threading.get_ident()
        self.text = f"{names:,} tensors of {elements:,} elements"

    def registered(self, *_: Any) -> None:
        """One more parameter or buffer."""
        if threading.get_ident() == self.thread:
            self.names -= 1
            self.require(self.names >= 0, "registers more tensors")

    def entered(self, *_: Any) -> None:
        """One more module."""
        if threading.get_ident() == self.thread:
            self.modules -= 1
            self.require(self.modules >= 0, "has more modules")

    def require(self, enough: bool, what: str) -> None:
        if not enough:
            raise SaveError(
                f"the model that its config describes {what} than the folder explains, which lists {self.text}: it is "
                "damaged or hostile"
            )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        foreseen = _foreseen(func, args, kwargs or {})
        self.require(foreseen <= self.elements, "computes more numbers")
        out = func(*args, **(kwargs or {}))
        self.elements -= max(foreseen, _made(func, out))
        self.require(self.elements >= 0, "computes more numbers")
        return out


def _foreseen(func: Any, args: Any, kwargs: Any) -> int:
    """Elements that an op is to write, found out before it takes the memory; 0 where these can only be few, or where
    the shapes of what it is given do not tell."""
    leaves = pytree.tree_leaves((args, kwargs))
    given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    numbers = [leaf for leaf in leaves if isinstance(leaf, (int, float)) and abs(leaf) > FEW]
    largest = functools.reduce(lambda a, b: a * max(1, b.numel()), given, 1)
    if not _writes(func) or func._schema.is_mutable or (given and largest <= FEW and not numbers):
        return 0
    if any(t.is_meta for t in given) or torch.device(kwargs.get("device") or "cpu").type == "meta":
        return 0
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
    if any(a.name == "device" for a in func._schema.arguments):
        kwargs = {**kwargs, "device": "meta"}
    try:
        return _elements(func(*args, **kwargs))
    except Exception:  # noqa: BLE001 - shapes that hang on values, or are none: the op itself will tell
        return 0


def _made(func: Any, out: Any) -> int:
    """Elements that an op has written."""
    return _elements(out, but="meta") if _writes(func) else 0


def _writes(func: Any) -> bool:
    """Whether an op takes memory for its result: views do not, nor do tensors that nothing is written into."""
    views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
    return not views and not func._schema.name.startswith(EMPTY)


def _elements(out: Any, but: str = "") -> int:
    values = out if isinstance(out, (tuple, list)) else (out,)
    return sum(v.numel() for v in values if isinstance(v, torch.Tensor) and v.device.type != but)


@contextlib.contextmanager
def within(names: int, elements: int) -> Iterator[None]:
    """Within, this thread builds what so many tensors of so many elements in all explain.

    Raises:
        SaveError: it goes on.
    """
    meter = _Meter(names, elements)
    handles = [
        registration.register_module_parameter_registration_hook(meter.registered),
        registration.register_module_buffer_registration_hook(meter.registered),
        registration.register_module_module_registration_hook(meter.entered),
    ]
    seconds = SECONDS + A_NAME * names + elements / A_SECOND
    try:
        with meter, _stopped_after(seconds, meter):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Late(BaseException):
    """Raised in a thread that works too long, past whatever catches exceptions there."""


@contextlib.contextmanager
def _stopped_after(seconds: float, meter: _Meter) -> Iterator[None]:
    """Stop this thread's Python once it has worked for so long; time in which it waits does not count."""
    ident, clock, done = threading.get_ident(), _clock_of_this_thread(), threading.Event()
    lock, start = threading.Lock(), clock()
    late: list[float] = []

    def watch() -> None:
        while not done.wait(0.1):
            with lock:
                if not done.is_set() and clock() - start > seconds:
                    late.append(clock() - start)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(_Late))
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            with lock:
                done.set()
            # What was sent arrives here at the latest. It is not taken back by sending NULL: that leaves CPython 3.11's
            # breaker set for good, and under a profiler its next call never returns.
            for _ in range(1000 * len(late)):
                pass
    except _Late:
        pass
    meter.require(not late, "takes longer")


def _clock_of_this_thread() -> Callable[[], float]:
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)
