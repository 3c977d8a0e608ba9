"""The tests of a mutant, in a copy of the checkout and a forked process: what they import is there already."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = 16 << 30  # bytes of address space that a mutant may take
WAITS = 30  # on a busy machine a second of the processor's is many of the clock's
KILLED, SURVIVED, ENDLESS = "killed", "survived", "endless"


def copied(root: Path, to: Path) -> Path:
    """The files of a checkout that git knows or would take, as they are now; their bytecode is made on the way."""
    shutil.rmtree(to, ignore_errors=True)
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0"):
        if name and os.path.lexists(root / name):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name, follow_symlinks=False)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(to)], check=False, stdout=subprocess.DEVNULL)
    return to.resolve()


def preload(modules: list[str]) -> None:
    """Import once what every mutant's tests import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


@contextlib.contextmanager
def holding(file: Path, text: str) -> Iterator[None]:
    """Within, a file holds another text; its bytecode goes before and after."""
    own = file.read_text()
    try:
        _put(file, text)
        yield
    finally:
        _put(file, own)


def verdict(tree: Path, tests: list[str], seconds: float, log: Path) -> str:
    """Run tests, in their order, until one fails.

    Args:
        tree: the copy of the checkout.
        tests: their ids.
        seconds: of the processor's, after which they are stopped; or of the clock's, if `WAITS` times as many pass.
        log: what they print.
    """
    child = os.fork()
    if not child:
        _test(tree, tests, seconds, log)
    ends = time.monotonic() + WAITS * seconds
    while time.monotonic() < ends:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: SURVIVED, -signal.SIGXCPU: ENDLESS}.get(code, KILLED)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return ENDLESS


def _test(tree: Path, tests: list[str], seconds: float, log: Path) -> None:
    """The forked process: never returns."""
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), math.ceil(seconds) + 5))
        with log.open("wb") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"] = str(tree)
        sys.dont_write_bytecode = True
        code = int(pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def _put(file: Path, text: str) -> None:
    file.write_text(text)
    for made in (file.resolve().parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
        made.unlink()
