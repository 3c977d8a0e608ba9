"""Prune one network of the zoo and judge the result.

ok        all of: the same output shapes, finite; other batch sizes work where the dense model's do; it trains; it
          deep-copies; the asked half of the parameters is gone (see `met`); masked = dense; the permutation certificate
weak      all of these, but less (or more) is gone
wrong     it came back, and one of these fails
refused   a FxPruneError with its reason; error: any other exception
broken    the dense network itself does not run here: nothing is said about fxprune
"""

from __future__ import annotations

import copy
import importlib.metadata
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from case import Case, tensors_in
from torch import Tensor, nn

import fxprune
from fxprune.verification import check_permutation

RATIO = 0.5
NEAR = 0.005  # how far from the asked share a budget is met whatever the steps
CERTIFIED = 3e8  # parameters up to which the permutation certificate is run, for time and memory
Record = dict[str, Any]
PACKAGES = ("torch", "torchvision", "timm", "transformers", "diffusers")
VERSIONS = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)


class Wrong(Exception):
    """What is broken about a pruned network."""


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def run(model: nn.Module, case: Case, batch: int | None = None) -> list[Tensor]:
    args, kwargs = case.inputs(batch)
    return tensors_in(model(*args, **kwargs))


def shapes(model: nn.Module, case: Case, batch: int | None = None) -> list[tuple[int, ...]]:
    with torch.no_grad():
        out = run(model, case, batch)
    if not out or not all(bool(torch.isfinite(x).all()) for x in out):
        raise Wrong("no output, or not finite")
    return [tuple(x.shape) for x in out]


def trains(model: nn.Module, case: Case) -> None:
    """One backward pass; raises where no finite gradient comes out."""
    loss = sum(x.float().pow(2).mean() for x in run(model, case) if x.requires_grad and not x.is_complex())
    loss.backward()  # type: ignore[union-attr]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    if not gradients or not all(bool(torch.isfinite(g).all()) for g in gradients):
        raise Wrong("no finite gradients")


@contextmanager
def failing(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:
        raise Wrong(f"{what}: {type(e).__name__}: {first_line(e)}") from e


def first_line(e: BaseException) -> str:
    return unplaced((str(e).strip().splitlines() or [""])[0])[:300]


def unplaced(text: str) -> str:
    """A text without the folders of this machine."""
    return re.sub(r"(?<![\w/])/\S*/(?=[^/\s]+\.py)", "", re.sub(r"/\S*/site-packages/", "", text))


def where(e: BaseException) -> str:
    """The innermost line of fxprune that an error passed through."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if "fxprune/" in f.filename.replace("\\", "/")]
    return f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else ""


def attempt(of: Callable[[], Any]) -> Any:
    """What `of` returns, or None where the dense model cannot do it."""
    try:
        return of()
    except Exception:  # noqa: BLE001  what a network does wrong is the result
        return None


def judge(case: Case, tell: Callable[[Record], None], certify: bool = True) -> Record:
    """Prune and check one network; `tell` is called with what is known so far.  `certify=False` halves the time."""
    record: Record = {"name": case.name, "family": case.family, "note": case.note, "status": "error", "reason": ""}
    record["versions"] = VERSIONS
    seconds: dict[str, float] = {}
    record["seconds"] = seconds

    @contextmanager
    def step(name: str) -> Iterator[None]:
        record["reason"] = f"ended in step {name}"
        tell(record)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds[name] = round(time.perf_counter() - start, 3)

    try:
        with step("build"):
            dense = case.build()
        with step("dense"):
            before = shapes(dense, case)
            other = attempt(lambda: shapes(dense, case, case.batch + 1))
            trainable = attempt(lambda: trains(dense, case) or True)
            dense = case.build()  # some models keep what they computed, and then cannot be copied
    except Exception as e:  # noqa: BLE001  what a network does wrong is the result
        return record | {"status": "broken", "reason": f"{type(e).__name__}: {first_line(e)}"}
    record |= {"parameters": size(dense), "outputs": before[:4], "other_batch": other is not None}
    try:
        with step("prune"):
            small = pruned(dense, case, RATIO)
    except fxprune.FxPruneError as e:
        return record | {"status": "refused", "reason": f"{type(e).__name__}: {first_line(e)}", "where": where(e)}
    except Exception as e:  # noqa: BLE001  what a network does wrong is the result
        return record | {"status": "error", "reason": f"{type(e).__name__}: {first_line(e)}", "where": where(e)}
    _describe(record, dense, small)
    try:
        with step("check"):
            check(small, case, before, other, bool(trainable))
        if certify:
            with step("certificate"):
                record["certificate"] = certificate(dense, case)
        with step("budget"):
            enough = met(dense, case, record["removed"])
    except Wrong as e:
        return record | {"status": "wrong", "reason": str(e)}
    reason = "" if enough else f"{record['removed']:.1%} of the parameters went, and nearer was possible"
    return record | {"status": "ok" if enough else "weak", "reason": reason}


def pruned(dense: nn.Module, case: Case, ratio: float) -> nn.Module:
    return fxprune.prune(dense, example_inputs=case.inputs(), criterion="magnitude", ratio=ratio, progress=False)


def met(dense: nn.Module, case: Case, removed: float) -> bool:
    """Whether the asked share went, as `prune` promises: to half a point, or to within one step of the network.

    Where the steps are coarser than that, it is asked once more for as much on the other side of the asked share: what
    comes back must not be nearer to it.
    """
    off = abs(removed - RATIO)
    if off <= NEAR:
        return True
    try:
        again = 1 - size(pruned(dense, case, 2 * RATIO - removed)) / size(dense)
    except fxprune.BudgetError as e:
        again = removed if e.reachable is None else e.reachable
    return abs(again - RATIO) >= off - 1e-4


def _describe(record: Record, dense: nn.Module, small: nn.Module) -> None:
    told = fxprune.report(small)
    record["removed"] = round(1 - size(small) / size(dense), 4)
    record["forward"] = told.forward
    record["why_graph"] = unplaced(told.reason)[:300]
    record["masked"] = max((c.error for c in told.checks), default=None)
    record["held"] = {c.name: round(c.share, 3) for c in told.held[:4]}
    record["steps"] = {k: round(v, 3) for k, v in told.seconds.items()}


def check(
    small: nn.Module, case: Case, before: list[tuple[int, ...]], other: list[tuple[int, ...]] | None, trainable: bool
) -> None:
    """Everything but the certificate.

    Raises:
        Wrong: naming what fails.
    """
    with failing("forward fails"):
        after = shapes(small.eval(), case)
    if after != before:
        raise Wrong(f"output shapes {before[:3]} became {after[:3]}")
    for proof in fxprune.report(small).checks:
        if not proof.ok:
            raise Wrong(str(proof))
    if other is not None:
        with failing("another batch size fails"):
            again = shapes(small, case, case.batch + 1)
        if again != other:
            raise Wrong(f"another batch size: shapes {other[:3]} became {again[:3]}")
    with failing("deepcopy fails"):
        copied = shapes(copy.deepcopy(small), case)
    if copied != before:
        raise Wrong("a deep copy gives other shapes")
    if trainable:
        with failing("backward fails"):
            trains(small, case)


def certificate(dense: nn.Module, case: Case) -> float | None:
    """The error of the permutation certificate, None where the network is too large for it here."""
    if size(dense) > CERTIFIED:
        return None
    proof = check_permutation(dense, fxprune.trace(dense, case.inputs()))
    if not proof.ok:
        raise Wrong(str(proof))
    return proof.error
