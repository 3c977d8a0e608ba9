"""What a stranger's folder makes a constructor compute is stopped before it takes the memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import torch

from fxprune.errors import SaveError
from fxprune.saving.configs import require_no_code, require_small
from fxprune.saving.isolation import _Meter, within

N = 10**9
X = torch.ones(10)
LARGE: dict[str, Callable[[], object]] = {
    "linspace": lambda: torch.linspace(0, 1, N), "arange": lambda: torch.arange(N), "eye": lambda: torch.eye(40_000),
    "full": lambda: torch.full((N,), 1.0), "rand": lambda: torch.rand(N), "repeat": lambda: X.repeat(N),
    "repeat_interleave": lambda: X.repeat_interleave(N), "pad": lambda: torch.nn.functional.pad(X, (0, N)),
    "outer": lambda: torch.outer(torch.ones(40_000), torch.ones(40_000)),
    "tril": lambda: torch.tril_indices(10**5, 10**5),
    "one_hot": lambda: torch.nn.functional.one_hot(torch.arange(5), N),
    "expand": lambda: X.expand(10**8, 10).contiguous(),
}  # fmt: skip


@pytest.mark.parametrize("case", LARGE)
def test_a_large_tensor_is_refused_before_it_is_made(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    inner = _Meter.__torch_dispatch__

    def watched(
        self: _Meter, func: object, types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        out = inner(self, func, types, args, kwargs)
        made.extend(t.untyped_storage().nbytes() for t in [out] if isinstance(t, torch.Tensor))
        return out

    monkeypatch.setattr(_Meter, "__torch_dispatch__", watched)
    with pytest.raises(SaveError, match="computes more numbers"), within(10, 1000):
        LARGE[case]()
    assert max(made, default=0) < 2**20


def test_what_a_model_needs_is_computed() -> None:
    with within(10, 1000):
        assert torch.linspace(0, 1, 10**5).repeat(3).shape == (3 * 10**5,)
        assert torch.nonzero(torch.ones(10**5)).shape == (10**5, 1), "whose shape hangs on values"
        torch.empty(10**9, device="meta")


def test_a_part_without_weights_asks_for_little() -> None:
    require_small({"num_train_timesteps": 1000, "clip": 1.5, "size": {"height": 224}, "none": float("inf")}, "here")
    with pytest.raises(SaveError, match=r"here has a.num_train_timesteps = 500000000, which is larger"):
        require_small({"a": {"num_train_timesteps": 5 * 10**8}}, "here")
    with pytest.raises(SaveError, match="names code"):
        require_small({"auto_map": "x--evil.E"}, "here")
    require_no_code({"model_max_length": 10**30}, "a tokenizer")


def work(seconds: float) -> None:
    start = time.thread_time()
    while time.thread_time() < start + seconds:
        pass


def swallowing(seconds: float) -> bool:
    """Work for so long; whether something was raised, and caught as a constructor might."""
    try:
        work(seconds)  # a loop here would not do: Python 3.13 does not count its jump back as a part of the `try`
    except BaseException:  # noqa: BLE001
        return True
    return False


def test_work_that_swallows_its_end_is_late_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.saving.isolation.SECONDS", 0.05)
    ended: list[bool] = []
    with pytest.raises(SaveError, match="takes longer than the folder explains"), within(1, 1):
        ended.append(swallowing(60.0))
    assert ended == [True], "at its limit, not after a minute"


# In a process of its own: where it fails, nothing but the end of the process ends it.
PROFILED = """
import sys
from fxprune.saving.isolation import within
with within(10, 1000):
    pass
def work():
    return 1
seen = []
sys.setprofile(lambda *args: seen.append(1))
(lambda: work())()
sys.setprofile(None)
print(len(seen))
"""


def test_what_was_built_can_be_profiled_afterwards() -> None:
    done = subprocess.run([sys.executable, "-c", PROFILED], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4, "calls and returns"
