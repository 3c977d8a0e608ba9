"""`fxprune compare`: loss and speed after pruning by several criteria, finished models beside them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli import options as o
from fxprune.cli.console import err, print_table, safe, say_where, told
from fxprune.cli.folder import Given, data_for, opened, require_data
from fxprune.errors import InputsError
from fxprune.scoring.score import COMPARED
from fxprune.studies.compare import compare as compare_
from fxprune.studies.comparison import TITLES, Comparison
from fxprune.training.options import Training


def compare(
    ctx: typer.Context,
    model: o.Model,
    weights: o.Weights = None,
    argument: o.Argument = None,
    criteria: Annotated[
        str, typer.Option(metavar="A,B,...", help='Criteria, see `fxprune list`; "" with --models for none.')
    ] = ",".join(COMPARED),
    ratios: Annotated[str, typer.Option(metavar="R,R,...", help="Shares of --of to remove.")] = "0.3,0.5",
    models: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MODEL,...", help="Finished models (as MODEL says) to measure beside them."),
    ] = None,
    schedulers: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,...", help="With --steps: every criterion is trained by each, see `fxprune list`."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Train every result for so many steps on --data, and measure after that.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW, at its highest; else a share of the weights' size.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How often, each time with other calibration samples.")] = 1,
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for compare.csv and compare.png.")
    ] = Path("compare"),
    of: Annotated[str, typer.Option(help="What the ratios count: params, macs, channels, memory or latency.")] = (
        "params"
    ),
    data: o.Data = None,
    held_out: Annotated[
        Path | None, typer.Option(metavar="PATH", help="What the loss is measured on, as --data; else --data.")
    ] = None,
    batch: o.Batch = 16,
    tokenizer: o.Tokenizer = None,
    ignore: o.Ignore = None,
    attention: Annotated[str, typer.Option(help="What an attention loses: heads or head_dim.")] = "heads",
    samples: o.Samples = 8,
    device: o.Device = "cpu",
    quiet: o.Quiet = False,
) -> None:
    """Prune MODEL by several criteria; show its loss, before any training or after it, and its speed.

    Rows that OUT/compare.csv holds already are not made again.

    Example: fxprune compare ddpm-cifar10-32 --criteria gradflow,taylor --ratios 0.3,0.5 --seeds 3
    """
    with told() as answer:
        training = _training(steps, learning_rate, data, device)
        dense = opened(model, weights, argument, device)
        require_data(dense, data or held_out, "compare")
        given = data_for(ctx, dense, data, "", batch=batch, shuffle=training is not None, tokenizer=tokenizer)
        test = Given(None, None, "")
        if held_out is not None:
            test = data_for(ctx, dense, held_out, "", batch=batch, tokenizer=tokenizer)
        made = compare_(
            dense,
            o.listed([criteria]),
            o.numbers([ratios], "--ratios"),
            models={name: opened(path, None, None, device) for name, path in _named(models).items()},
            schedulers=o.listed(schedulers),
            training=training,
            seeds=seeds,
            of=of,
            data=given.batches,
            held_out=test.batches,
            loss=given.loss or test.loss,
            attention=attention,
            ignore=o.listed(ignore),
            samples=samples,
            out=output,
            progress=not quiet,
        )
        _show(made)
        answer |= {"model": made.model, "of": made.of, "rows": [asdict(row) for row in made.rows], "out": str(output)}
        say_where(f"rows and picture in {output}")


def _training(steps: int | None, learning_rate: float | None, data: Path | None, device: str) -> Training | None:
    """How results are trained, where they are.

    Raises:
        InputsError: there is nothing to train on, or nobody asked for training.
    """
    if steps is None:
        if learning_rate is not None:
            raise InputsError("--learning-rate goes with training: pass --steps and --data too, or leave it out")
        return None
    if data is None:
        raise InputsError("--steps trains the results: pass --data, files to train with")
    place: dict[str, Any] = {"cpu": True} if device == "cpu" else {}
    return Training(steps, learning_rate=learning_rate, accelerate=place)


def _named(given: list[str] | None) -> dict[str, str]:
    """NAME=MODEL items.

    Raises:
        InputsError: one is of another form, or two have the same name.
    """
    found: dict[str, str] = {}
    for item in o.listed(given):
        name, equals, path = item.partition("=")
        if not (name and equals and path):
            raise InputsError(f"--models {item} is not of the form NAME=MODEL, such as mine=path/to/mine")
        if name in found:
            raise InputsError(f"--models has two of the name {name}; call one of them otherwise")
        found[name] = path
    return found


def _show(made: Comparison) -> None:
    """The table without what is empty in all of its rows, and the errors below it."""
    rows = [cells[:-1] for cells in made.summary()]
    kept = [k for k, title in enumerate(TITLES[:-1]) if title == "criterion" or any(cells[k] for cells in rows)]
    columns = {TITLES[k]: "right" if k else "left" for k in kept}
    title = f"{made.model}: loss after pruning, {made.how} (dense: {_dense(made)})"
    print_table(title, columns, [[cells[k] for k in kept] for cells in rows])
    for error in dict.fromkeys(f"{row.criterion}: {row.error}" for row in made.rows if row.error):
        err.print(f"[red]{safe(error)}[/]", highlight=False, soft_wrap=True)


def _dense(made: Comparison) -> str:
    return next((f"{row.dense:.4g}" for row in made.rows if row.dense is not None), "?")
