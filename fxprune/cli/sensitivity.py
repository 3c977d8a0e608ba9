"""`fxprune sensitivity`: how much the loss rises when one part after the other loses channels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli.console import out, safe, told
from fxprune.cli.folder import Folder, on_device, open_folder
from fxprune.reporting.figures import check_file, check_picture
from fxprune.scoring.score import DEFAULT_CRITERION
from fxprune.studies.sensitivity import SHARES
from fxprune.studies.sensitivity import sensitivity as measure


def sensitivity(
    directory: Folder,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the table as CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the curves, as .png, .svg or .pdf.")] = None,
    criterion: Annotated[str, typer.Option(help="Which channels go first; see `fxprune list`.")] = DEFAULT_CRITERION,
    share: Annotated[list[float] | None, typer.Option(help="A share of the channels to remove; repeatable.")] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A tensor or module to leave whole, or a glob; repeatable.")
    ] = None,
    attention: Annotated[str, typer.Option(help="What an attention loses: heads or head_dim.")] = "heads",
    samples: Annotated[int, typer.Option(help="Calibration samples that the model draws itself.")] = 8,
    seed: Annotated[int, typer.Option(help="For everything drawn at random.")] = 0,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Measure how much the loss of the model in DIR rises when one part after the other loses channels."""
    with told():
        if csv is not None:
            check_file(csv, "--csv")
        if plot is not None:
            check_picture(plot, "--plot")
        table = measure(
            on_device(open_folder(directory), device),
            criterion,
            shares=share or SHARES,
            attention=attention,
            ignore=tuple(ignore or ()),
            samples=samples,
            seed=seed,
            progress=not quiet,
        )
        out.print(safe(repr(table)), highlight=False, soft_wrap=True)
        if csv is not None:
            table.to_csv(csv)
        if plot is not None:
            table.plot(plot)
