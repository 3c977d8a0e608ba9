"""`fxprune sample`: look at what a model makes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxprune.cli import options as o
from fxprune.cli.console import say, say_where, told
from fxprune.cli.folder import opened
from fxprune.reporting.figures import check_picture
from fxprune.sources.samples import continued, drawn, reads_text, save_grid


def sample(
    model: o.Model,
    output: Annotated[
        Path, typer.Option("--out", "-o", metavar="PNG", help="Of a pipeline: the grid of images to write.")
    ] = Path("samples.png"),
    number: Annotated[int, typer.Option("--number", "-n", help="How many images.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps of the sampler.")] = 50,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What a pipeline draws, or a language model goes on from; repeatable.")
    ] = None,
    label: Annotated[list[int] | None, typer.Option(help="Classes that a pipeline draws; repeatable.")] = None,
    tokens: Annotated[int, typer.Option(help="Of a language model: tokens to add.")] = 32,
    tokenizer: o.Tokenizer = None,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    quiet: o.Quiet = False,
) -> None:
    """Draw images with the pipeline in MODEL into one picture, or let a language model go on from a prompt.

    The same seed gives a dense and a pruned pipeline the same noise, to compare them.

    Example: fxprune sample small -o small.png -n 16 --seed 1
    """
    with told() as answer:
        if reads_text(made := opened(model, None, None, device)):
            texts = continued(made, prompt or [], tokens, None if tokenizer is None else str(tokenizer))
            answer["texts"] = texts
            for text in texts:
                say(text)
            return
        file = check_picture(output, "--out")
        images = drawn(made, number, steps, prompts=prompt or (), labels=label or (), seed=seed, progress=not quiet)
        save_grid(images, file)
        answer |= {"out": str(file), "images": len(images)}
        say_where(f"{len(images)} images in {file}")
