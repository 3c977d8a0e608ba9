"""`fxprune inspect`: what can be pruned, what cannot and why, and what has gone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from fxprune.adapter import find_adapter
from fxprune.cli.console import out, print_plan, print_table, safe, told
from fxprune.cli.folder import Folder, open_folder
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.groups import Group
from fxprune.pruning.prune import trace
from fxprune.reporting.report import causes, in_all
from fxprune.saving.header import HEADER, Header, Saved
from fxprune.saving.header_reading import read

SHOWN = 20  # rows of a table without --all


def inspect(
    directory: Folder,
    every: Annotated[bool, typer.Option("--all", help="Every group, not only the largest ones.")] = False,
    explain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Why this tensor or module is frozen, or what it goes with; repeatable."),
    ] = None,
    attention: Annotated[str, typer.Option(help="What an attention would lose: heads or head_dim.")] = "heads",
) -> None:
    """Show what can be pruned in the model in DIR, what cannot and why, and how it was pruned if it was."""
    with told():
        saved = read(directory) if (directory / HEADER).is_file() else None
        if saved is not None:
            _print_saved(saved, directory)
        if isinstance(saved, Saved) and saved.config is None:
            out.print("Its class cannot be built from the folder, so its channels are not shown: load it in Python.")
            return
        given = open_folder(directory)
        graph = trace(find_adapter(given).unwrap(given)[0], attention=attention)
        _print_graph(graph, None if every else SHOWN)
        for name in explain or ():
            out.print(safe(graph.explain(name)), highlight=False, soft_wrap=True)


def _print_saved(saved: Header, directory: Path) -> None:
    """What a folder of ours says of itself."""

    versions = ", ".join(f"{k} {v}" for k, v in saved.versions.items())
    out.print(safe(f"{saved.name}, saved by {versions}"), highlight=False, soft_wrap=True)
    if saved.metrics:
        print_table("metrics", {"": "left", "value": "right"}, [(k, str(v)) for k, v in saved.metrics.items()])
    if not isinstance(saved, Saved):
        for name in saved.components:
            _print_saved(read(directory / name), directory / name)
    elif saved.plan is None:
        out.print("not pruned")
    else:
        whole = in_all((*saved.earlier, saved.plan))
        print_plan(whole)
        if whole.speed:
            out.print(whole.speed, highlight=False, soft_wrap=True)


def _print_graph(graph: ChannelGraph, most: int | None) -> None:

    total = sum(math.prod(graph.shapes[name]) for name in graph.parameters) + graph.outside
    channels = sum(map(len, graph.groups))
    title = f"{graph.model_class}: {total:,} parameters, {len(graph.groups)} groups of {channels:,} channels"
    costs = sorted(((_per_channel(graph, g), g) for g in graph.groups), key=lambda x: -x[0] * len(x[1]))
    rows = [(g.name, g.kind, f"{len(g):,}", f"{len(g.slices)}", f"{cost:,.0f}") for cost, g in costs]
    columns = {
        "group": "left",
        "unit": "left",
        "channels": "right",
        "tensors": "right",
        "parameters each": "right",
    }
    print_table(title, columns, rows[:most], left_out=len(rows) - len(rows[:most]))
    _print_blocks(graph, total, most)
    held = [(c.name, f"{c.axes:,}", f"{c.share:.1%}", c.examples[0] if c.examples else "") for c in causes(graph)]
    columns = {"held back by": "left", "axes": "right", "of parameters": "right", "for example": "left"}
    print_table("What cannot be pruned, or only in part", columns, held)


def _print_blocks(graph: ChannelGraph, total: int, most: int | None) -> None:
    """Residual branches that --granularity block takes out."""
    sizes = [sum(math.prod(graph.shapes[t]) for t in b.tensors if t in graph.parameters) for b in graph.blocks]
    rows = [(b.name, f"{n:,}", f"{n / total:.1%}") for b, n in zip(graph.blocks, sizes, strict=True)]
    columns = {"block": "left", "parameters": "right", "share": "right"}
    if rows:
        print_table("Blocks that can go whole", columns, rows[:most], left_out=len(rows) - len(rows[:most]))


def _per_channel(graph: ChannelGraph, group: Group) -> float:
    """Parameters that go with one channel of a group, while all others stay."""
    return sum(
        math.prod(graph.shapes[s.tensor]) / graph.shapes[s.tensor][s.axis] * int(s.positions.shape[1])
        for s in group.slices
        if s.tensor in graph.parameters
    )
