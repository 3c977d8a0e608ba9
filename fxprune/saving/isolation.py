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
        sizes = _written(func, args, kwargs or {})
        self.require(sizes <= self.elements, "computes more numbers")
        out = func(*args, **(kwargs or {}))
        self.elements -= max(sizes, _made(func, out))
        self.require(self.elements >= 0, "computes more numbers")
        return out


def _written(func: Any, args: Any, kwargs: Any) -> int:
    """Elements that a factory is asked for, before it takes the memory; 0 where the arguments do not tell."""
    size = args[0] if args and isinstance(args[0], (list, tuple, torch.Size)) else kwargs.get("size")
    device = kwargs.get("device")
    real = device is None or torch.device(device).type != "meta"
    if not real or not size or not all(isinstance(n, int) for n in size) or func._schema.name.startswith(EMPTY):
        return 0
    return functools.reduce(lambda a, b: a * b, size, 1)


def _made(func: Any, out: Any) -> int:
    """Elements that an op has written: views are none."""
    views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
    if views or func._schema.name.startswith(EMPTY):
        return 0
    values = out if isinstance(out, (tuple, list)) else (out,)
    return sum(v.numel() for v in values if isinstance(v, torch.Tensor) and v.device.type != "meta")


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

    def watch() -> None:
        while not done.wait(0.1):
            with lock:
                if not done.is_set() and clock() - start > seconds:
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
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), None)
    except _Late:
        meter.require(False, "takes longer")


def _clock_of_this_thread() -> Callable[[], float]:
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)
