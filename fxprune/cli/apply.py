"""`fxprune apply`: a plan carried out, on the model it was made for or on another checkpoint of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli import options as o
from fxprune.cli.console import say_where, told
from fxprune.cli.folder import Given, opened, saved_somewhere, writable
from fxprune.cli.prune import shown
from fxprune.errors import PlanError
from fxprune.planning.plan import Plan
from fxprune.pruning.prune import apply as apply_
from fxprune.saving.folder import claim
from fxprune.sources.data import open_data


def apply(
    model: o.Model,
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The file that `fxprune plan` wrote.")],
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for the result; an earlier result is replaced.")
    ],
    weights: o.Weights = None,
    argument: o.Argument = None,
    criterion: Annotated[
        str | None, typer.Option(help="One that corrects what stays, such as obs; else weights stay as they are.")
    ] = None,
    data: o.Data = None,
    batch: o.Batch = 16,
    tokenizer: o.Tokenizer = None,
    timesteps: o.Timesteps = None,
    samples: o.Samples = 8,
    seed: o.Seed = 0,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove that the result is right.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail rather than return a traced graph as forward.")
    ] = False,
    device: o.Device = "cpu",
    quiet: o.Quiet = False,
) -> None:
    """Carry out a plan on MODEL: the one it was made for, or other weights of it; save the result in OUT.

    Example: fxprune apply ddpm-cifar10-32 plan.json -o small
    """
    with told() as answer:
        writable(claim(output))
        made = _read(plan)
        dense = opened(model, weights, argument, device)
        how: dict[str, Any] = {"criterion": criterion, "timesteps": timesteps, "samples": samples, "seed": seed}
        if data is not None:
            found = open_data(dense, data, batch=batch, seed=seed, tokenizer=tokenizer)
            how |= Given(*found, criterion or "").beside(dense)
        small = apply_(dense, made, verify=verify, strict=strict, progress=not quiet, **how)
        answer |= shown(small) | {"out": str(output)}
        saved_somewhere(small, output)
        say_where(f"saved in {output}")


def _read(file: Path) -> Plan:
    try:
        return Plan.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise PlanError(f"{file} cannot be read: {type(e).__name__}: {e}; write one with fxprune plan") from e
