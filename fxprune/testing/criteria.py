"""The laws of criteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from fxprune.errors import CriterionError, InputsError
from fxprune.graph.copies import deep_copy
from fxprune.scoring.score import Criterion, Scores, resolve, score
from fxprune.testing.claims import MAKERS, Claims, Subject, subject
from fxprune.verification import permutation, permute_

CLOSE = 5e-3  # of the largest score of a group: finite differences in float32 are that rough
HALF = torch.bfloat16


def check_criterion(
    criterion: str | type[Any] | Criterion,
    *,
    equivariant: bool = True,
    degrees: Mapping[str, float] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, HALF),
) -> None:
    """Check a criterion on a convolutional network and on one with attention.

    It is given what it declares in `needs`, and no more.  A criterion may itself declare `degrees`.

    One that declares `partial = True` may have nothing to say about one of the two.

    Args:
        criterion: a class that can be called without arguments, an instance, or a registered name.
        equivariant: permuting the channels of the network permutes the scores; not so for what draws random numbers.
        degrees: how scores (before normalisation) grow: {"weights": 2} where all weights times t give scores times t²,
            {"loss": 1} for the loss times t.
        dtypes: of weights, all of which it must take.

    Raises:
        AssertionError: it breaks a law; names the criterion, its package, and the law.

    >>> check_criterion("magnitude")
    >>> check_criterion(lambda ctx: {name: -p for name, p in ctx.parameters.items()}, degrees={"weights": 1})
    """
    claims = Claims.of("criteria", "criterion", criterion)
    with claims.during("it cannot be made"):
        call = resolve(criterion)[0]
    degrees = getattr(call, "degrees", {}) if degrees is None else degrees
    subjects = {name: subject(name) for name in MAKERS}
    attributes = {name: _attributes(s.model) for name, s in subjects.items()}
    scored = {name: _scored(claims, call, s, silent=getattr(call, "partial", False)) for name, s in subjects.items()}
    first = {name: scores for name, scores in scored.items() if scores.values}
    claims.hold(bool(first), "it has nothing to say about any channel of any network")
    for name in first:
        s = subjects[name]
        _check_spread(claims, first[name])
        _check_determinism(claims, call, s, first[name])
        _check_attributes(claims, s, attributes[name])
        if equivariant:
            _check_permutation(claims, call, s, first[name])
        for what, degree in degrees.items():
            _check_degree(claims, call, s, what, degree)
        for dtype in dtypes:
            _scored(claims, call, subject(name, dtype=dtype))
        if torch.cuda.is_available():
            _close(claims, first[name], _scored(claims, call, subject(name, "cuda")), "scores on a GPU differ")


def _scored(
    claims: Claims, call: Criterion, s: Subject, factor: float = 1.0, normalize: Any = None, silent: bool = False
) -> Scores:
    """Scores with what the criterion declares that it needs; `score` itself checks names, shapes and NaN.

    Args:
        silent: whether it may have nothing to say; the scores are then empty.
    """
    needs = getattr(call, "needs", ())
    given: dict[str, Any] = {"data": s.batches} if "data" in needs else {}
    if {"loss", "forward"} & set(needs):
        given["loss"] = lambda model, batch: factor * s.loss(model, batch)
    doing = f"scoring a {type(s.model).__name__} of {next(s.model.parameters()).dtype} fails"
    with claims.during(doing):
        try:
            return score(s.graph, s.model, call, seed=1, normalize=normalize, **given)
        except CriterionError as e:
            if silent and "has nothing to say" in str(e):
                return Scores({}, "")
            raise
        except InputsError as e:
            if "looks at the model at work" not in str(e):
                raise
            claims.fail(f"it asks for what it does not declare (needs = {set(needs) or 'nothing'}): {e}")


def _check_spread(claims: Claims, scores: Scores) -> None:
    values = [v for n, v in scores.values.items() if n not in scores.unscored]
    claims.hold(any(np.ptp(v) > 0 for v in values), "all channels of every group have the same score")


def _check_determinism(claims: Claims, call: Criterion, s: Subject, before: Scores) -> None:
    """Another network has been scored in between, and the global random state is another one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(77)
        state = torch.get_rng_state()
        again = _scored(claims, call, s)
        claims.hold(torch.equal(torch.get_rng_state(), state), "it changed torch's random state")
    what = "the same model, data and seed gave other scores (it keeps state, or draws from a generator of its own)"
    claims.hold(all(np.array_equal(v, again.values[n]) for n, v in before.values.items()), what)


def _check_attributes(claims: Claims, s: Subject, before: Mapping[str, str]) -> None:
    """Weights, modes, gradients and hooks are `score`'s to check or restore; what else a module holds is not."""
    after = _attributes(s.model)
    changed = sorted(n for n in after.keys() | before.keys() if after.get(n) != before.get(n))
    claims.hold(not changed, f"it changed attributes of the model: {', '.join(changed[:3])}")


def _attributes(model: nn.Module) -> dict[str, str]:
    """Every attribute of every module; of tensors and containers of modules only that they are there."""
    out = {}
    for path, module in model.named_modules():
        for k, v in vars(module).items():
            simple = isinstance(v, (bool, int, float, str, tuple, type(None)))
            out[f"{path}.{k}".lstrip(".")] = repr(v) if simple else f"{type(v).__name__} {id(v)}"
    return out


def _check_permutation(claims: Claims, call: Criterion, s: Subject, before: Scores) -> None:
    orders = permutation(s.graph, seed=1)
    after = _scored(claims, call, Subject(permute_(deep_copy(s.model), s.graph, orders), s.graph, s.batches))
    for g, group in enumerate(s.graph.groups):
        if group.name not in before.unscored:
            want, got = before.values[group.name][orders[g]], after.values[group.name]
            what = f"permuting the channels of {group.name} does not permute their scores"
            claims.hold(bool(np.abs(want - got).max() <= CLOSE * max(np.abs(want).max(), 1e-30)), what)


def _check_degree(claims: Claims, call: Criterion, s: Subject, what: str, degree: float) -> None:
    claims.hold(what in ("weights", "loss"), f"it declares a degree in {what!r}; use 'weights' or 'loss'")
    factor, model = 1.5, deep_copy(s.model)
    if what == "weights":
        with torch.no_grad():
            for name, t in (*model.named_parameters(), *model.named_buffers()):
                if t.is_floating_point() and "running" not in name:
                    t.mul_(factor)
    base = _scored(claims, call, s, normalize="none")
    grown = _scored(claims, call, Subject(model, s.graph, s.batches), factor if what == "loss" else 1.0, "none")
    scaled = Scores({n: v * factor**degree for n, v in base.values.items()}, base.criterion, base.unscored)
    _close(claims, scaled, grown, f"{what} times {factor} do not give scores times {factor}^{degree:g}")


def _close(claims: Claims, want: Scores, got: Scores, what: str) -> None:
    for name, values in want.values.items():
        error = np.abs(values - got.values[name]).max() / max(np.abs(values).max(), 1e-30)
        claims.hold(bool(error <= CLOSE), f"{what} (group {name}, by {error:.1%})")
