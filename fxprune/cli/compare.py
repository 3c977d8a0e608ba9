"""`fxprune compare`: the loss after pruning by several criteria, before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.console import err, out, print_table, safe, told
from fxprune.cli.folder import Folder, on_device, open_folder
from fxprune.errors import InputsError
from fxprune.scoring.score import COMPARED
from fxprune.studies.compare import compare as compare_
from fxprune.studies.comparison import Comparison


def compare(
    directory: Folder,
    criteria: Annotated[str, typer.Option(metavar="A,B,...", help="Criteria, see `fxprune list`.")] = ",".join(
        COMPARED
    ),
    ratios: Annotated[str, typer.Option(metavar="R,R,...", help="Shares of --of to remove.")] = "0.3,0.5",
    seeds: Annotated[int, typer.Option(help="How often, each time with other calibration samples.")] = 1,
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="Folder for compare.csv and compare.png.")
    ] = Path("compare"),
    of: Annotated[str, typer.Option(help="What the ratios count: params, macs or channels.")] = "params",
    attention: Annotated[str, typer.Option(help="What an attention loses: heads or head_dim.")] = "heads",
    samples: Annotated[int, typer.Option(help="Calibration samples that the model draws itself.")] = 8,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Prune the model in DIR by several criteria; show its loss before any training, and what scoring took.

    Rows that OUT/compare.csv holds already are not made again.

    Example: fxprune compare ddpm-cifar10-32 --criteria gradflow,taylor --ratios 0.3,0.5 --seeds 3
    """
    with told():
        made = compare_(
            on_device(open_folder(directory), device),
            _listed(criteria),
            [_number(r) for r in _listed(ratios)],
            seeds=seeds,
            of=of,
            attention=attention,
            samples=samples,
            out=output,
            progress=not quiet,
        )
        right = dict.fromkeys(["ratio", "loss", "params gone", "MACs gone", "scored in", "memory"], "right")
        title = f"{made.model}: loss after pruning, without training (dense: {_dense(made)})"
        print_table(title, {"criterion": "left", **right}, [cells[:-1] for cells in made.summary()])
        for error in dict.fromkeys(f"{row.criterion}: {row.error}" for row in made.rows if row.error):
            err.print(f"[red]{safe(error)}[/]", highlight=False, soft_wrap=True)
        out.print(f"rows and picture in {safe(str(output))}", highlight=False, soft_wrap=True)


def _dense(made: Comparison) -> str:
    return next((f"{row.dense:.4g}" for row in made.rows if row.dense is not None), "?")


def _listed(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as e:
        raise InputsError(f"--ratios: {text!r} is no number, such as 0.3,0.5") from e
