"""`fxprune plan`: what `prune` would take, written down before anything is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fxprune import api
from fxprune.adapter import find_adapter
from fxprune.cli import options as o
from fxprune.cli.console import plan_data, print_plan, say_where, told
from fxprune.cli.folder import data_for, opened
from fxprune.errors import InputsError
from fxprune.reporting.figures import check_file, writing
from fxprune.reporting.report import report
from fxprune.scoring.score import DEFAULT_CRITERION


def plan(
    ctx: typer.Context,
    model: o.Model,
    output: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The plan to write, as JSON.")] = Path(
        "plan.json"
    ),
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
    attention: Annotated[str, typer.Option(help="What an attention loses: heads or head_dim.")] = "heads",
    ignore: o.Ignore = None,
    round_to: o.RoundTo = "1",
    min_width: o.MinWidth = 1,
    max_ratio: o.MaxRatio = None,
    exact_norms: o.ExactNorms = False,
    scope: o.Scope = None,
    legal_for: o.LegalFor = None,
    granularity: o.Granularity = "channel",
    normalize: o.Normalize = None,
    timesteps: o.Timesteps = None,
    samples: o.Samples = 8,
    seed: o.Seed = 0,
    device: o.Device = "cpu",
    quiet: o.Quiet = False,
) -> None:
    """Write down what `prune` would take of MODEL, as a plan to look at, to edit and to apply.

    Example: fxprune plan ddpm-cifar10-32 --ratio 0.4 -o plan.json
    """
    with told() as answer:
        file = check_file(output, "--out")
        dense = opened(model, weights, argument, device)
        given = data_for(ctx, dense, data, criterion, batch=batch, seed=seed, tokenizer=tokenizer)
        if attention not in ("heads", "head_dim"):
            raise InputsError(f"--attention {attention}: a plan is one cut, of heads or of head_dim")
        small = api.prune(
            dense,
            given.criterion,
            ratio,
            of=of,
            target=target,
            ratios=o.shares(group_ratio),
            **given.beside(dense),
            attention=attention,
            ignore=o.listed(ignore),
            round_to=o.multiple(round_to),
            min_width=min_width,
            max_ratio=max_ratio,
            exact_norms=exact_norms,
            scope=scope,
            legal_for=legal_for,
            granularity=granularity,
            normalize=cast(Any, normalize),
            timesteps=timesteps,
            samples=samples,
            max_batches=max_batches,
            seed=seed,
            verify=False,
            progress=not quiet,
        )
        made = report(find_adapter(small).unwrap(small)[0]).plan
        with writing(file):
            file.write_text(made.to_json(), encoding="utf-8")
        print_plan(made)
        answer |= plan_data(made) | {"out": str(file)}
        say_where(f"plan in {file}")
