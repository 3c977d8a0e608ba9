"""One thread at a time: `torch.export` patches what is global, and what fxprune does to a model others must not see.

    with in_turn: ...       entered again by the same thread at no cost

A second thread waits until the first has its result.  A model must not run elsewhere meanwhile: that is the caller's.
"""

from __future__ import annotations

import os
import threading


class Turns:
    """A lock that a thread may take again, and that a forked child finds open."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    def _renew(self) -> None:
        """Whoever held it is not there in a child, unless it is the thread that forked."""
        owned = getattr(self._lock, "_is_owned", lambda: False)()
        if not owned:
            self._lock = threading.RLock()


in_turn = Turns()
