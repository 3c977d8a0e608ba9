"""`fxprune compare`: the loss after pruning by several criteria, before any training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli import options as o
from fxprune.cli.console import err, print_table, safe, say_where, told
from fxprune.cli.folder import data_for, opened, require_data
from fxprune.scoring.score import COMPARED
from fxprune.studies.compare import compare as compare_
from fxprune.studies.comparison import Comparison


def compare(
    ctx: typer.Context,
    model: o.Model,
    weights: o.Weights = None,
    argument: o.Argument = None,
    criteria: Annotated[str, typer.Option(metavar="A,B,...", help="Criteria, see `fxprune list`.")] = ",".join(
        COMPARED
    ),
    ratios: Annotated[str, typer.Option(metavar="R,R,...", help="Shares of --of to remove.")] = "0.3,0.5",
    seeds: Annotated[int, typer.Option(help="How often, each time with other calibration samples.")] = 1,
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for compare.csv and compare.png.")
    ] = Path("compare"),
    of: Annotated[str, typer.Option(help="What the ratios count: params, macs or channels.")] = "params",
    data: o.Data = None,
    batch: o.Batch = 16,
    tokenizer: o.Tokenizer = None,
    ignore: o.Ignore = None,
    attention: Annotated[str, typer.Option(help="What an attention loses: heads or head_dim.")] = "heads",
    samples: o.Samples = 8,
    device: o.Device = "cpu",
    quiet: o.Quiet = False,
) -> None:
    """Prune MODEL by several criteria; show its loss before any training, and what scoring took.

    Rows that OUT/compare.csv holds already are not made again.

    Example: fxprune compare ddpm-cifar10-32 --criteria gradflow,taylor --ratios 0.3,0.5 --seeds 3
    """
    with told() as answer:
        dense = opened(model, weights, argument, device)
        require_data(dense, data, "compare")
        given = data_for(ctx, dense, data, "", batch=batch, tokenizer=tokenizer)
        made = compare_(
            dense,
            o.listed([criteria]),
            o.numbers([ratios], "--ratios"),
            seeds=seeds,
            of=of,
            data=given.batches,
            loss=given.loss,
            attention=attention,
            ignore=o.listed(ignore),
            samples=samples,
            out=output,
            progress=not quiet,
        )
        right = dict.fromkeys(["ratio", "loss", "params gone", "MACs gone", "scored in", "memory"], "right")
        title = f"{made.model}: loss after pruning, without training (dense: {_dense(made)})"
        print_table(title, {"criterion": "left", **right}, [cells[:-1] for cells in made.summary()])
        for error in dict.fromkeys(f"{row.criterion}: {row.error}" for row in made.rows if row.error):
            err.print(f"[red]{safe(error)}[/]", highlight=False, soft_wrap=True)
        answer |= {"model": made.model, "of": made.of, "rows": [asdict(row) for row in made.rows], "out": str(output)}
        say_where(f"rows and picture in {output}")


def _dense(made: Comparison) -> str:
    return next((f"{row.dense:.4g}" for row in made.rows if row.dense is not None), "?")
