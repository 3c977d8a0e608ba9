"""`fxprune prune`: a smaller model or pipeline, saved in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune import api
from fxprune.adapter import find_adapter
from fxprune.cli.console import out, print_plan, safe, told
from fxprune.cli.folder import Folder, on_device, open_folder, saved_somewhere, writable
from fxprune.errors import InputsError
from fxprune.folders import prune_folder
from fxprune.reporting.figures import check_picture
from fxprune.reporting.report import report
from fxprune.saving.folder import claim
from fxprune.scoring.score import DEFAULT_CRITERION
from fxprune.training.images import image_batches
from fxprune.training.options import Training


def prune(
    directory: Folder,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="Folder for the result; an earlier result is replaced."),
    ],
    ratio: Annotated[
        float | None,
        typer.Option(help="Share of --of to remove, at least 0 and below 1; 0.4 if nothing else is asked."),
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="In place of --ratio: what is to stay of --of, such as 20e6 parameters.")
    ] = None,
    criterion: Annotated[str, typer.Option(help="How channels are ranked; see `fxprune list`.")] = DEFAULT_CRITERION,
    of: Annotated[str, typer.Option(help="The budget is one of params, macs, channels, memory, latency.")] = "params",
    group_ratio: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SHARE", help="Share of its channels that a group (or a glob's) loses; repeatable."),
    ] = None,
    scheduler: Annotated[str, typer.Option(help="When how much goes; see `fxprune list`.")] = "one_shot",
    steps: Annotated[
        int | None,
        typer.Option(help="Train for so many steps, with --data: while channels go, or after a cut at once."),
    ] = None,
    after: Annotated[int, typer.Option(help="Steps of training of the small model, after --steps.")] = 0,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Images to train with, for a model that draws pixels.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Images a step (and process).")] = 16,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW, at its highest; else a share of the weights' size.")
    ] = None,
    distill: Annotated[
        bool, typer.Option("--distill/--no-distill", help="Learn from the dense model's outputs, too.")
    ] = True,
    ema_decay: Annotated[float | None, typer.Option(help="Save an average of the weights, such as 0.999.")] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="no, bf16 or fp16.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for checkpoints; the same command goes on from them.")
    ] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 500,
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw masks, cost and loss of the run.")] = None,
    attention: Annotated[str, typer.Option(help="What an attention loses: heads, head_dim, or both.")] = "heads",
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A tensor or module to leave whole, or a glob; repeatable.")
    ] = None,
    round_to: Annotated[
        str, typer.Option(metavar="N", help="Keep widths multiples of this; auto: what suits the device.")
    ] = "1",
    min_width: Annotated[int, typer.Option(help="Channels that every group keeps.")] = 1,
    max_ratio: Annotated[
        float | None, typer.Option(help="Largest share that one group of channels may lose (0.9, or all but one).")
    ] = None,
    exact_norms: Annotated[bool, typer.Option("--exact-norms", help="Never regroup a group norm.")] = False,
    scope: Annotated[
        str | None,
        typer.Option(
            help="Rank all channels by what is lost for the cost (knapsack) or by score (global), those of one "
            "structure (isomorphic), or each group alone (local)."
        ),
    ] = None,
    shape: Annotated[
        str,
        typer.Option(
            help="free: every layer gets its own width; stock: what the class's own constructor makes, saved by its "
            "own library."
        ),
    ] = "free",
    nearest: Annotated[
        bool, typer.Option("--nearest", help="With --shape stock, take the nearest there is to the budget.")
    ] = False,
    granularity: Annotated[
        str, typer.Option(help="What goes: single channels (channel), whole residual branches (block), or both.")
    ] = "channel",
    normalize: Annotated[
        str | None, typer.Option(help="How scores of different groups are made comparable; see fxprune.score.")
    ] = None,
    timesteps: Annotated[
        str | None, typer.Option(help="Times of a diffusion process that count: uniform, snr or threshold.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Calibration samples that the model draws itself.")] = 8,
    seed: Annotated[int, typer.Option(help="For everything drawn at random.")] = 0,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read weights from their files where they are used: for models too large.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove that the result is right.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail rather than return a traced graph as forward.")
    ] = False,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ...")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Prune the model in DIR, or the backbone of the pipeline in DIR, and save the result in OUT.

    Read the result with fxprune.load(OUT): a model or pipeline of the same class. With --shape stock read it with the
    library's own from_pretrained(OUT).

    Example: fxprune prune ddpm-cifar10-32 --ratio 0.4 -o small
    """
    with told():
        writable(claim(output))  # before the work, not after it
        if picture is not None:
            check_picture(picture, "--picture")
        _refuse_untrained(steps, after, learning_rate, ema_decay, mixed_precision, checkpoints, picture)
        cut: dict[str, Any] = {"of": of, "target": target, "ratios": _shares(group_ratio), "attention": attention}
        cut |= {"ignore": tuple(ignore or ()), "round_to": int(round_to) if round_to.isdecimal() else round_to}
        cut |= {"min_width": min_width, "max_ratio": max_ratio, "exact_norms": exact_norms, "scope": scope}
        cut |= {"shape": shape, "nearest": nearest, "granularity": granularity, "normalize": normalize}
        cut |= {"timesteps": timesteps, "samples": samples, "seed": seed, "verify": verify, "strict": strict}
        cut |= {"progress": not quiet}
        if stream:
            _refuse_streamed({"--steps": steps, "--data": data, "--device": device != "cpu"})
            prune_folder(directory, output, criterion, ratio, scheduler=scheduler, **cut)
            out.print(f"saved in {safe(str(output))}", highlight=False, soft_wrap=True)
            return
        model = on_device(open_folder(directory), device)
        options: dict[str, Any] = {"accelerate": {"cpu": True} if device == "cpu" else {}, "after": after}
        options |= {
            "learning_rate": learning_rate,
            "distill": "auto" if distill else None,
            "ema_decay": ema_decay,
            "picture": picture,
        }
        options |= {"mixed_precision": mixed_precision, "checkpoint_dir": checkpoints}
        options |= {"checkpoint_every": checkpoint_every}
        training = _training(steps, options)
        small = api.prune(
            model,
            criterion,
            ratio,
            scheduler=scheduler,
            training=training,
            data=_images(model, data, batch, training),
            **cut,
        )
        _print_pruned(small)
        saved_somewhere(small, output, stock=shape != "free")
        out.print(f"saved in {safe(str(output))}", highlight=False, soft_wrap=True)


def _refuse_streamed(given: dict[str, Any]) -> None:
    """Options for which the model has to be in memory."""
    if found := [name for name, value in given.items() if value]:
        raise InputsError(f"{found[0]} needs the model in memory; leave out {found[0]}, or --stream")


def _refuse_untrained(
    steps: int | None,
    after: int,
    learning_rate: float | None,
    ema_decay: float | None,
    mixed_precision: str | None,
    checkpoints: Path | None,
    picture: Path | None,
) -> None:
    """Options of training without --steps would do nothing."""
    asked: dict[str, Any] = {"--after": after, "--learning-rate": learning_rate is not None}
    asked |= {"--ema-decay": ema_decay is not None, "--mixed-precision": mixed_precision}
    asked |= {"--checkpoints": checkpoints, "--picture": picture}
    if steps is None and (found := [name for name, given in asked.items() if given]):
        raise InputsError(f"{found[0]} goes with training: pass --steps and --data too, or leave it out")


def _shares(given: list[str] | None) -> dict[str, float] | None:
    """NAME=SHARE items as a dict."""
    shares = {}
    for item in given or ():
        name, _, share = item.rpartition("=")
        try:
            shares[name] = float(share)
        except ValueError as e:
            raise InputsError(f"--group-ratio {item} is not of the form NAME=SHARE, such as 'mid_block.*=0.1'") from e
    return shares or None


def _training(steps: int | None, options: dict[str, Any]) -> Any:

    return None if steps is None else Training(steps, **options)


def _images(model: Any, folder: Path | None, size: int, training: Any) -> Any:
    """Batches of a folder of images, if there is one."""

    if (folder is None) != (training is None):
        raise InputsError(
            "--steps and --data go together: the steps to train for, and a folder of images to train with"
        )
    return None if folder is None else image_batches(model, folder, size)


def _print_pruned(small: Any) -> None:

    made = report(find_adapter(small).unwrap(small)[0])
    print_plan(made.total)
    for check in made.checks:
        out.print(safe(str(check)), highlight=False)
    if made.speed:
        out.print(made.speed, highlight=False, soft_wrap=True)
    if made.forward != "module":
        out.print(f"forward: {made.forward} ({safe(made.reason)})", highlight=False)
