"""`fxprune sensitivity`: how much the loss rises when one part after the other loses channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli import options as o
from fxprune.cli.console import say, told
from fxprune.cli.folder import data_for, opened, require_data
from fxprune.reporting.figures import check_file, check_picture
from fxprune.scoring.score import DEFAULT_CRITERION
from fxprune.studies.sensitivity import SHARES
from fxprune.studies.sensitivity import sensitivity as measure


def sensitivity(
    ctx: typer.Context,
    model: o.Model,
    weights: o.Weights = None,
    argument: o.Argument = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves, as .png, .svg or .pdf.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="OUT", help="Folder that keeps what is measured, to go on from.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="Which channels go first; see `fxprune list`.")] = DEFAULT_CRITERION,
    share: Annotated[
        list[str] | None, typer.Option("--shares", "--share", metavar="R,...", help="Shares of the channels to remove.")
    ] = None,
    data: o.Data = None,
    batch: o.Batch = 16,
    tokenizer: o.Tokenizer = None,
    ignore: o.Ignore = None,
    attention: Annotated[str, typer.Option(help="What an attention loses: heads or head_dim.")] = "heads",
    samples: o.Samples = 8,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    quiet: o.Quiet = False,
) -> None:
    """Measure how much the loss of MODEL rises when one part after the other loses channels.

    Example: fxprune sensitivity ddpm-cifar10-32 --shares 0.3,0.6 --plot curves.png
    """
    with told() as answer:
        if csv is not None:
            check_file(csv, "--csv")
        if plot is not None:
            check_picture(plot, "--plot")
        dense = opened(model, weights, argument, device)
        require_data(dense, data, "sensitivity")
        given = data_for(ctx, dense, data, criterion, batch=batch, seed=seed, tokenizer=tokenizer)
        table = measure(
            dense,
            criterion,
            shares=o.numbers(share, "--shares") or SHARES,
            data=given.batches,
            loss=given.loss,
            attention=attention,
            ignore=o.listed(ignore),
            samples=samples,
            seed=seed,
            out=out,
            progress=not quiet,
        )
        say(repr(table))
        if csv is not None:
            table.to_csv(csv)
        if plot is not None:
            table.plot(plot)
        answer |= {"model": table.model, "metric": table.metric, "dense": table.base}
        answer["curves"] = [dataclasses.asdict(curve) for curve in table.curves]
