"""A report as one page of HTML that needs nothing else: tables to search, and a picture of the channels to zoom."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from fxprune.errors import InputsError, printable
from fxprune.planning.plan import Plan
from fxprune.reporting.anatomy import JOIN, Anatomy, Choice, Layer
from fxprune.reporting.history import History
from fxprune.reporting.trajectories import picture_of

ACROSS, DOWN = 210, 46  # between layers of the picture
COLUMNS = 8  # of a grid of samples
SCALE = 96  # pixels, about: how wide a sample is shown


class Told(Protocol):
    """What is read of a report here, beside what the template prints as it is; see `fxprune.Report`."""

    @property
    def total(self) -> Plan: ...
    @property
    def held(self) -> Sequence[Any]: ...
    @property
    def anatomy(self) -> Anatomy | None: ...
    @property
    def history(self) -> History | None: ...


@dataclass(frozen=True)
class Node:
    """A layer, or a place where several meet, in the picture."""

    name: str
    x: float
    y: float
    text: str
    tip: str
    join: bool
    share: float


@dataclass(frozen=True)
class Module:
    """A module with all that is in it: costs before and after, and how deep it lies."""

    name: str
    kind: str
    depth: int
    params: tuple[float, float]
    macs: tuple[float, float]
    shapes: tuple[tuple[str, str], ...]


def page(reports: Mapping[str, Told], samples: Mapping[str, Tensor] | None = None) -> str:
    """The HTML text.

    Args:
        reports: what each part is called -> its report; one of a model, several of a pipeline.
        samples: what they are called -> images (n, channels, height, width) in [-1, 1], to be seen side by side.

    Raises:
        InputsError: the samples are no images.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"share": _share, "number": _number, "change": _change}
    text = files("fxprune.reporting").joinpath("page.html").read_text(encoding="utf-8")
    grids = {printable(name): _grid(name, images) for name, images in (samples or {}).items()}
    parts = [(printable(name), _shown(made)) for name, made in reports.items()]
    return environment.from_string(text).render(parts=parts, grids=grids)


def _shown(made: Told) -> dict[str, Any]:
    """What the template reads of a report."""
    total, anatomy = made.total, made.anatomy
    return {
        "report": made,
        "plan": total,
        "costs": [(k, before, after) for k, (before, after) in total.costs.items()],
        "held": round(sum(c.share for c in made.held), 9),
        "modules": list(_modules(anatomy.layers, total.model)) if anatomy else [],
        "choices": [(c, _why(c)) for c in anatomy.groups] if anatomy else [],
        "frozen": anatomy.frozen if anatomy else (),
        "picture": _picture(anatomy) if anatomy and anatomy.links else None,
        "masks": _masks(made),
    }


# ---- cells -------------------------------------------------------------------------------------------------------


def _share(value: float) -> str:
    return f"{value:.1%}"


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _change(before: float, after: float) -> str:
    return f"−{1 - after / before:.1%}" if before and after < before else ""


def _why(choice: Choice) -> str:
    """Why so many channels of a group stayed, in terms of their scores."""
    if choice.before == choice.after and not choice.kept:
        return "nothing goes; no scores are at hand"
    if choice.before == choice.after:
        return f"nothing goes: the lowest score is {choice.kept[0]:.3g}"
    if not choice.gone or not choice.kept:
        return "decided by masks while it trained, or without scores"
    overlap = "" if choice.gone[2] <= choice.kept[0] else "; some went with others that had to go together"
    return f"what went scores up to {choice.gone[2]:.3g}, what stays from {choice.kept[0]:.3g}{overlap}"


def _modules(layers: Sequence[Layer], model: str) -> Iterator[Module]:
    """Every module that holds a layer, what holds others before these, in order."""
    inside: dict[str, list[Layer]] = {"": list(layers)}
    for layer in layers:
        parts = layer.name.split(".") if layer.name != model else []
        for k in range(len(parts)):
            inside.setdefault(".".join(parts[: k + 1]), []).append(layer)
    for path in sorted(inside, key=lambda p: [_ordinal(x) for x in p.split(".")] if p else []):
        own = next((x for x in inside[path] if x.name == (path or model)), None)
        yield Module(
            name=path or model,
            kind=own.kind if own else "",
            depth=path.count(".") + bool(path),
            params=_sums([x.params for x in inside[path]]),
            macs=_sums([x.macs for x in inside[path]]),
            shapes=tuple((f"{n} {_sizes(b)}", _sizes(a)) for n, b, a in own.tensors) if own else (),
        )


def _ordinal(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdigit() else (-1, part)


def _sums(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(a for a, _ in pairs), sum(b for _, b in pairs)


def _sizes(shape: tuple[int, ...] | None) -> str:
    return "gone" if shape is None else "×".join(map(str, shape)) or "scalar"


# ---- pictures ----------------------------------------------------------------------------------------------------


def _picture(anatomy: Anatomy) -> dict[str, Any]:
    """Nodes from above to below in the order of the forward, and links with the share of channels that went."""
    graph = nx.DiGraph((a, b) for a, b, _ in anatomy.links)
    if not nx.is_directed_acyclic_graph(graph):  # a layer that is called several times
        graph.remove_edges_from(list(nx.selfloop_edges(graph)))
        while not nx.is_directed_acyclic_graph(graph):
            graph.remove_edge(*nx.find_cycle(graph)[-1][:2])
    order = list(nx.topological_sort(graph))
    for name in order:
        graph.nodes[name]["depth"] = max((graph.nodes[p]["depth"] + 1 for p in graph.predecessors(name)), default=0)
    for name in reversed(order):  # what waits for others stands beside them
        after = [graph.nodes[s]["depth"] - 1 for s in graph.successors(name)]
        graph.nodes[name]["depth"] = min(after, default=graph.nodes[name]["depth"])
    at = _places(graph)
    layers = {x.name: x for x in anatomy.layers}
    groups = {c.name: c for c in anatomy.groups}
    nodes = [_node(name, at[name], layers.get(name)) for name in graph]
    links = [(at[a], at[b], name, _gone(groups.get(name))) for a, b, name in anatomy.links]
    widest = max(x for x, _ in at.values()) + ACROSS
    return {"nodes": nodes, "links": links, "width": widest, "height": max(y for _, y in at.values()) + DOWN}


def _places(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """Where every node stands: its place in its row is near to what leads to it."""
    rows: dict[int, list[str]] = {}
    for name, depth in graph.nodes(data="depth"):
        rows.setdefault(depth, []).append(name)
    at: dict[str, tuple[float, float]] = {}
    for depth in sorted(rows):
        wanted = {n: [at[p][0] for p in graph.predecessors(n) if p in at] for n in rows[depth]}
        free = 10.0
        for name in sorted(rows[depth], key=lambda n: np.mean(wanted[n]) if wanted[n] else 0.0):
            x = max(free, min(wanted[name], default=free))
            at[name], free = (x, depth * DOWN + 10), x + ACROSS
    return at


def _node(name: str, at: tuple[float, float], layer: Layer | None) -> Node:
    if layer is None:
        return Node(name, *at, "", name.removeprefix(JOIN), name.startswith(JOIN), 0.0)
    before, after = next(((b, a) for _, b, a in layer.tensors), ((), ()))
    width = f"{before[0]} → {after[0]}" if before and after and before[0] != after[0] else str(*before[:1])
    shapes = "\n".join(f"{n} {_sizes(b)} → {_sizes(a)}" for n, b, a in layer.tensors)
    gone = 1 - layer.params[1] / layer.params[0] if layer.params[0] else 0.0
    return Node(name, *at, width if after is not None else "gone", f"{name} ({layer.kind})\n{shapes}", False, gone)


def _gone(choice: Choice | None) -> float:
    return 0.0 if choice is None else 1 - choice.after / choice.before


def _masks(made: Told) -> str:
    """The masks' way as a picture, where there was one and matplotlib is at hand."""
    if made.history is None or not len(made.history):
        return ""
    try:
        figure = picture_of(made.history)
    except InputsError:
        return ""
    held = io.StringIO()
    figure.savefig(held, format="svg")
    return _uri(held.getvalue().encode(), "image/svg+xml")


def _grid(name: str, images: Any) -> tuple[str, int]:
    """Images side by side, as a PNG within the page, and how wide it is shown."""
    if not isinstance(images, Tensor) or images.dim() != 4 or images.shape[1] not in (1, 3) or not len(images):
        told = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputsError(f"samples={{{name!r}: ...}} is {told}; pass images, (n, 1 or 3, height, width) in [-1, 1]")
    from PIL import Image

    values = ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    n, height, width, channels = values.shape
    columns = min(COLUMNS, n)
    rows = -(-n // columns)
    sheet = np.full((rows * height, columns * width, channels), 255, np.uint8)
    for i, image in enumerate(values.numpy()):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = image
    held = io.BytesIO()
    Image.fromarray(sheet.squeeze(-1) if channels == 1 else sheet).save(held, format="PNG")
    return _uri(held.getvalue(), "image/png"), columns * max(SCALE, width) // 2


def _uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
