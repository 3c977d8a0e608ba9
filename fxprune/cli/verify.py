"""`fxprune verify`: the proofs, of a model in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.adapter import find_adapter
from fxprune.cli import options as o
from fxprune.cli.console import say, told
from fxprune.cli.folder import opened
from fxprune.errors import InputsError, VerifyError
from fxprune.pruning.prune import trace
from fxprune.reporting.report import is_pruned, report
from fxprune.verification import Check, check_permutation
from fxprune.verification import verify as verify_


def verify(
    model: o.Model,
    dense: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What it was pruned from, not trained since: masked = dense is proved."),
    ] = None,
    weights: o.Weights = None,
    argument: o.Argument = None,
    attention: Annotated[
        str, typer.Option(help="How MODEL is looked at without --dense: heads or head_dim.")
    ] = "heads",
    seed: o.Seed = 0,
    device: o.Device = "cpu",
) -> None:
    """Prove that MODEL is right: with --dense, that it computes what the dense model with masks computes.

    Without --dense the permutation certificate is taken: the channels that fxprune finds coupled in MODEL are so. A
    folder's checksums are compared in both cases. Exit code 1 if a proof fails.

    Example: fxprune verify small --dense ddpm-cifar10-32
    """
    with told() as answer:
        if dense is None:
            net = _net(model, weights, argument, device)
            checks: tuple[Check, ...] = (check_permutation(net, trace(net, attention=attention), seed),)
        else:
            checks = _against(_net(model, None, None, device), _net(dense, weights, argument, device), seed)
        answer["checks"] = [
            {"name": c.name, "error": c.error, "tolerance": c.tolerance, "ok": c.ok, "note": c.note} for c in checks
        ]
        for check in checks:
            say(str(check))
        if not all(check.ok for check in checks):
            raise VerifyError(f"{model} is not right, see above; please report this model")


def _net(model: str, weights: Path | None, argument: list[str] | None, device: str) -> Any:
    made = opened(model, weights, argument, device)
    return find_adapter(made).unwrap(made)[0]


def _against(small: Any, dense: Any, seed: int) -> tuple[Check, ...]:
    if not is_pruned(small):
        raise InputsError("MODEL was not pruned by fxprune, so there is no plan to compare it by; leave out --dense")
    made = report(small)
    if made.earlier:
        raise InputsError(
            f"MODEL was pruned {len(made.earlier) + 1} times; --dense proves one cut: name what the last one "
            "was made of"
        )
    graph = trace(dense, attention=made.plan.traced[0])
    return verify_(dense, small, graph, made.plan, seed=seed)
