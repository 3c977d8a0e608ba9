"""`fxprune inspect`: what can be pruned, what cannot and why, and what has gone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.adapter import find_adapter
from fxprune.cli import options as o
from fxprune.cli.console import plan_data, print_plan, print_table, say, told
from fxprune.cli.folder import opened
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.groups import Group
from fxprune.pruning.prune import trace
from fxprune.reporting.report import causes, in_all
from fxprune.saving.header import HEADER, Header, Saved
from fxprune.saving.header_reading import read

SHOWN = 20  # rows of a table without --all


def inspect(
    model: o.Model,
    weights: o.Weights = None,
    argument: o.Argument = None,
    every: Annotated[bool, typer.Option("--all", help="Every group, not only the largest ones.")] = False,
    explain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="Why this tensor or module is frozen, or what it goes with."),
    ] = None,
    attention: Annotated[str, typer.Option(help="What an attention would lose: heads or head_dim.")] = "heads",
) -> None:
    """Show what can be pruned in MODEL, what cannot and why, and how it was pruned if it was.

    Example: fxprune inspect small --explain conv_in
    """
    with told() as answer:
        directory = Path(model)
        saved = read(directory) if (directory / HEADER).is_file() else None
        if saved is not None:
            answer["saved"] = _saved(saved, directory)
        if isinstance(saved, Saved) and saved.config is None:
            say("Its class cannot be built from the folder, so its channels are not shown: load it in Python.")
            return
        given = opened(model, weights, argument, "cpu")
        graph = trace(find_adapter(given).unwrap(given)[0], attention=attention)
        answer |= _shown(graph, None if every else SHOWN)
        answer["explained"] = {name: graph.explain(name) for name in o.listed(explain)}
        for text in answer["explained"].values():
            say(text)


def _saved(saved: Header, directory: Path) -> dict[str, Any]:
    """Print what a folder of ours says of itself, and give the same as data."""
    say(f"{saved.name}, saved by {', '.join(f'{k} {v}' for k, v in saved.versions.items())}")
    told: dict[str, Any] = {"class": saved.name, "versions": dict(saved.versions), "metrics": dict(saved.metrics or {})}
    if saved.metrics:
        print_table("metrics", {"": "left", "value": "right"}, [(k, str(v)) for k, v in saved.metrics.items()])
    if not isinstance(saved, Saved):
        told["components"] = {n: _saved(read(directory / n), directory / n) for n in saved.components}
    elif saved.plan is None:
        say("not pruned")
    else:
        plan = in_all((*saved.earlier, saved.plan))
        print_plan(plan)
        if plan.speed:
            say(plan.speed)
        told["plan"] = plan_data(plan)
    return told


def _shown(graph: ChannelGraph, most: int | None) -> dict[str, Any]:
    """Print what a graph lets go and what it holds, and give the same as data, whole."""
    total = sum(math.prod(graph.shapes[name]) for name in graph.parameters) + graph.outside
    channels = sum(map(len, graph.groups))
    title = f"{graph.model_class}: {total:,} parameters, {len(graph.groups)} groups of {channels:,} channels"
    costs = sorted(((_per_channel(graph, g), g) for g in graph.groups), key=lambda x: -x[0] * len(x[1]))
    rows = [(g.name, g.kind, f"{len(g):,}", f"{len(g.slices)}", f"{cost:,.0f}") for cost, g in costs]
    columns = {"group": "left", "unit": "left", "channels": "right", "tensors": "right", "params each": "right"}
    print_table(title, columns, rows[:most], left_out=len(rows) - len(rows[:most]))
    blocks = _blocks(graph, total, most)
    held = causes(graph)
    cells = [(c.name, f"{c.axes:,}", f"{c.share:.1%}", c.examples[0] if c.examples else "") for c in held]
    columns = {"held back by": "left", "axes": "right", "params": "right", "for example": "left"}
    print_table("What cannot be pruned, or only in part", columns, cells)
    groups = [
        {"name": g.name, "unit": g.kind, "channels": len(g), "tensors": len(g.slices), "params_each": cost}
        for cost, g in costs
    ]
    frozen = [{"reason": c.name, "axes": c.axes, "share": c.share, "examples": list(c.examples)} for c in held]
    return {"model": graph.model_class, "params": total, "groups": groups, "blocks": blocks, "held": frozen}


def _blocks(graph: ChannelGraph, total: int, most: int | None) -> list[dict[str, Any]]:
    """Residual branches that --granularity block takes out."""
    sizes = [sum(math.prod(graph.shapes[t]) for t in b.tensors if t in graph.parameters) for b in graph.blocks]
    rows = [(b.name, f"{n:,}", f"{n / total:.1%}") for b, n in zip(graph.blocks, sizes, strict=True)]
    columns = {"block": "left", "parameters": "right", "share": "right"}
    if rows:
        print_table("Blocks that can go whole", columns, rows[:most], left_out=len(rows) - len(rows[:most]))
    return [{"name": b.name, "params": n} for b, n in zip(graph.blocks, sizes, strict=True)]


def _per_channel(graph: ChannelGraph, group: Group) -> float:
    """Parameters that go with one channel of a group, while all others stay."""
    return sum(
        math.prod(graph.shapes[s.tensor]) / graph.shapes[s.tensor][s.axis] * int(s.positions.shape[1])
        for s in group.slices
        if s.tensor in graph.parameters
    )
