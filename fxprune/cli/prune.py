"""`fxprune prune`: a smaller model or pipeline, saved in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune import api
from fxprune.adapter import find_adapter
from fxprune.cli import options as o
from fxprune.cli.console import plan_data, print_plan, say, say_where, told
from fxprune.cli.folder import data_for, opened, saved_somewhere, writable
from fxprune.errors import InputsError
from fxprune.folders import prune_folder
from fxprune.reporting.figures import check_picture
from fxprune.reporting.report import report
from fxprune.saving.folder import claim
from fxprune.scoring.score import DEFAULT_CRITERION
from fxprune.training.options import Training


def prune(
    ctx: typer.Context,
    model: o.Model,
    output: Annotated[
        Path,
        typer.Option(
            "--out", "-o", "--output", metavar="OUT", help="Folder for the result; an earlier result is replaced."
        ),
    ],
    weights: o.Weights = None,
    argument: o.Argument = None,
    ratio: o.Ratio = None,
    target: o.Target = None,
    criterion: o.CriterionName = DEFAULT_CRITERION,
    of: o.Of = "params",
    group_ratio: o.GroupRatio = None,
    data: o.Data = None,
    batch: o.Batch = 16,
    max_batches: o.MaxBatches = None,
    tokenizer: o.Tokenizer = None,
    scheduler: Annotated[str, typer.Option(help="When how much goes; see `fxprune list`.")] = "one_shot",
    steps: Annotated[
        int | None,
        typer.Option(help="Train for so many steps, with --data: while channels go, or after a cut at once."),
    ] = None,
    after: Annotated[int, typer.Option(help="Steps of training of the small model, after --steps.")] = 0,
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
    attention: o.Attention = "heads",
    ignore: o.Ignore = None,
    round_to: o.RoundTo = "1",
    min_width: o.MinWidth = 1,
    max_ratio: o.MaxRatio = None,
    exact_norms: o.ExactNorms = False,
    scope: o.Scope = None,
    legal_for: o.LegalFor = None,
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
    granularity: o.Granularity = "channel",
    normalize: o.Normalize = None,
    timesteps: o.Timesteps = None,
    samples: o.Samples = 8,
    seed: o.Seed = 0,
    stream: Annotated[
        bool, typer.Option("--stream", help="Read weights from their files where they are used: for models too large.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Prove that the result is right.")] = True,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail rather than return a traced graph as forward.")
    ] = False,
    device: o.Device = "cpu",
    quiet: o.Quiet = False,
) -> None:
    """Prune MODEL, or the backbone of a pipeline, and save the result in the folder OUT.

    Read the result with fxprune.load(OUT): a model or pipeline of the same class. With --shape stock read it with the
    library's own from_pretrained(OUT).

    Example: fxprune prune ddpm-cifar10-32 --ratio 0.4 -o small
    """
    with told() as answer:
        writable(claim(output))  # before the work, not after it
        if picture is not None:
            check_picture(picture, "--picture")
        _refuse_untrained(steps, after, learning_rate, ema_decay, mixed_precision, checkpoints, picture)
        cut: dict[str, Any] = {"of": of, "target": target, "ratios": o.shares(group_ratio), "attention": attention}
        cut |= {"ignore": o.listed(ignore), "round_to": o.multiple(round_to)}
        cut |= {"min_width": min_width, "max_ratio": max_ratio, "exact_norms": exact_norms, "scope": scope}
        cut |= {"legal_for": legal_for, "shape": shape, "nearest": nearest, "granularity": granularity}
        cut |= {"normalize": normalize, "timesteps": timesteps, "samples": samples, "max_batches": max_batches}
        cut |= {"seed": seed, "verify": verify, "strict": strict, "progress": not quiet}
        if stream:
            _refuse_streamed({"--steps": steps, "--data": data, "--device": device != "cpu", "--weights": weights})
            prune_folder(model, output, criterion, ratio, scheduler=scheduler, **cut)
            answer |= {"out": str(output)}
            say_where(f"saved in {output}")
            return
        dense = opened(model, weights, argument, device)
        if steps is not None and data is None:
            raise InputsError("--steps and --data go together: the steps to train for, and files to train with")
        given = data_for(ctx, dense, data, criterion, batch=batch, shuffle=bool(steps), seed=seed, tokenizer=tokenizer)
        options: dict[str, Any] = {"accelerate": {"cpu": True} if device == "cpu" else {}, "after": after}
        options |= {"learning_rate": learning_rate, "distill": "auto" if distill else None, "ema_decay": ema_decay}
        options |= {"picture": picture, "mixed_precision": mixed_precision, "checkpoint_dir": checkpoints}
        options |= {"checkpoint_every": checkpoint_every}
        training = None if steps is None else Training(steps, **options)
        small = api.prune(
            dense,
            given.criterion,
            ratio,
            scheduler=scheduler,
            training=training,
            **given.beside(dense),
            **cut,
        )
        answer |= shown(small) | {"out": str(output)}
        saved_somewhere(small, output, stock=shape != "free")
        say_where(f"saved in {output}")


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


def shown(small: Any) -> dict[str, Any]:
    """Print what was done, and the same as data."""
    made = report(find_adapter(small).unwrap(small)[0])
    print_plan(made.total)
    for check in made.checks:
        say(str(check))
    if made.speed:
        say(made.speed)
    if made.forward != "module":
        say(f"forward: {made.forward} ({made.reason})")
    checks = [{"name": c.name, "error": c.error, "tolerance": c.tolerance, "ok": c.ok} for c in made.checks]
    timing = made.timing and {"dense": made.timing.before, "pruned": made.timing.after}
    return {
        **plan_data(made.total),
        "checks": checks,
        "timing": timing,
        "speedup": made.speedup,
        "forward": made.forward,
    }
