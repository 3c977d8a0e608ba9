"""The options that commands share, each said once: what a model is, what goes, where it is computed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.errors import InputsError

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder of fxprune, diffusers, transformers or timm; a name on the hub; or an architecture, such as "
        "timm:resnet18 or torchvision:resnet18.",
        show_default=False,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="For an architecture: .safetensors or .pth; or random. Else its library's own."),
]
Argument = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="For an architecture: what else its maker takes, such as in_chans=1."),
]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Seed = Annotated[int, typer.Option(help="For everything drawn at random.")]
Samples = Annotated[int, typer.Option(help="Calibration samples that the model draws itself.")]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="A folder of images (in sub-folders by class, or with captions), or text for a language model.",
    ),
]
Batch = Annotated[int, typer.Option(help="Samples of --data a step (and process).")]
MaxBatches = Annotated[int | None, typer.Option(help="How many batches of --data are read to score; else all.")]
Tokenizer = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Of a tokenizer, where the folder of the model has none.")
]
Ignore = Annotated[
    list[str] | None, typer.Option(metavar="NAME,...", help="Tensors or modules to leave whole, or globs of them.")
]
Attention = Annotated[str, typer.Option(help="What an attention loses: heads, head_dim, or both.")]
Ratio = Annotated[
    float | None, typer.Option(help="Share of --of to remove, at least 0 and below 1; 0.4 if nothing else is asked.")
]
Target = Annotated[
    float | None, typer.Option(help="In place of --ratio: what is to stay of --of, such as 20e6 parameters.")
]
CriterionName = Annotated[str, typer.Option(help="How channels are ranked; see `fxprune list`.")]
Of = Annotated[str, typer.Option(help="The budget is one of params, macs, channels, memory, latency.")]
GroupRatio = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=SHARE,...", help="Share of its channels that a group (or a glob's) loses."),
]
RoundTo = Annotated[str, typer.Option(metavar="N", help="Keep widths multiples of this; auto: what suits the device.")]
MinWidth = Annotated[int, typer.Option(help="Channels that every group keeps.")]
MaxRatio = Annotated[
    float | None, typer.Option(help="Largest share that one group of channels may lose (0.9, or all but one).")
]
ExactNorms = Annotated[bool, typer.Option("--exact-norms", help="Never regroup a group norm.")]
Scope = Annotated[
    str | None,
    typer.Option(
        help="Rank all channels by what is lost for the cost (knapsack) or by score (global), those of one structure "
        "(isomorphic), or each group alone (local)."
    ),
]
LegalFor = Annotated[str | None, typer.Option(help="Keep widths that a quantiser takes: int8, int4-g32, fp8, ...")]
Granularity = Annotated[
    str, typer.Option(help="What goes: single channels (channel), whole residual branches (block), or both.")
]
Normalize = Annotated[
    str | None, typer.Option(help="How scores of different groups are made comparable; see fxprune.score.")
]
Timesteps = Annotated[
    str | None, typer.Option(help="Times of a diffusion process that count: uniform, snr or threshold.")
]


def listed(given: Iterable[Any] | None) -> tuple[str, ...]:
    """The items of an option that takes several: given several times, with commas between, or both.

    >>> listed(["a,b", "c"])
    ('a', 'b', 'c')
    """
    return tuple(item.strip() for text in given or () for item in str(text).split(",") if item.strip())


def numbers(given: Iterable[Any] | None, option: str) -> list[float]:
    """The same, of numbers.

    Raises:
        InputsError: one is none.
    """
    out = []
    for item in listed(given):
        try:
            out.append(float(item))
        except ValueError as e:
            raise InputsError(f"{option}: {item!r} is no number, such as 0.3") from e
    return out


def shares(given: Iterable[Any] | None) -> dict[str, float] | None:
    """NAME=SHARE items as a dict.

    Raises:
        InputsError: an item is of another form.
    """
    found = {}
    for item in listed(given):
        name, _, share = item.rpartition("=")
        try:
            found[name] = float(share)
        except ValueError as e:
            raise InputsError(f"--group-ratio {item} is not of the form NAME=SHARE, such as 'mid_block.*=0.1'") from e
    return found or None


def multiple(given: str) -> int | str:
    """What `--round-to` says: a number, or a word.

    >>> multiple("8"), multiple("auto")
    (8, 'auto')
    """
    return int(given) if given.isdecimal() else given
