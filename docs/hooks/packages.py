"""A picture of the packages, drawn from the imports in the sources at each build of the site.

Every package of fxprune is a box, and every module that stands beside them.  An arrow leads from a box to one that
imports it, unless other arrows lead there already (a transitive reduction), so what depends on what can be followed
downwards.  Packages that import each other in a circle would share a box.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx

ROOT = Path(__file__).resolve().parents[2]
MARK = "<!-- packages -->"
EVERYWHERE = {"errors"}  # imported by all: arrows from it would say nothing
PLUGINS = {"criteria", "schedulers", "adapters"}
FACE = "fxprune"  # the package itself: what `import fxprune` offers

LETTER, HEIGHT, ACROSS, DOWN, EDGE = 8, 30, 18, 34, 12  # of a name, a box, between boxes, around the picture


def on_page_content(html: str, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return html.replace(MARK, drawn(imports())) if MARK in html else html


# ---- who imports whom -----------------------------------------------------------------------------------------------


def imports() -> nx.DiGraph:
    """Box -> boxes that import it; `tip` is the first line of a box's docstring."""
    sources = dict(_sources())
    graph = nx.DiGraph()
    for module, path in sources.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        stub = path.with_suffix(".pyi")  # what a package imports lazily
        lazy = ast.parse(stub.read_text(encoding="utf-8")) if stub.exists() else ast.Module([], [])
        box = _box(module)
        graph.add_node(box)
        if module in (FACE, f"{FACE}.{box}"):
            graph.nodes[box]["tip"] = (ast.get_docstring(tree) or box).partition("\n")[0]
        for other in {_box(name) for part in (tree, lazy) for name in _imported(part, sources)} - {box}:
            graph.add_edge(other, box)
    graph.remove_nodes_from(EVERYWHERE)
    return graph


def _sources() -> Iterator[tuple[str, Path]]:
    """Dotted name -> file, the three linked folders through their links or not, and each once."""
    places = [(FACE, ROOT / FACE), *((f"{FACE}.{name}", ROOT / name) for name in sorted(PLUGINS))]
    for start, folder in places:
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            if folder.name != FACE or inside[0] not in PLUGINS:
                yield ".".join((start, *(part for part in inside if part != "__init__"))), path


def _imported(tree: ast.AST, sources: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] == FACE)
        elif isinstance(node, ast.ImportFrom) and node.level:  # in the stub of the package itself
            yield f"{FACE}.{node.module}"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == FACE:
            names = (f"{node.module}.{a.name}" for a in node.names)
            yield from (name if name in sources else str(node.module) for name in names)


def _box(module: str) -> str:
    return [*module.split("."), FACE][1]


# ---- where boxes stand ----------------------------------------------------------------------------------------------


def _rows(graph: nx.DiGraph) -> list[list[Any]]:
    """Boxes from top to bottom, each below all that it imports; a long arrow passes each row through a point."""
    rows: list[list[Any]] = [sorted(row) for row in nx.topological_generations(graph)]
    for node in [n for row in rows[:1] for n in row]:  # what one row alone reads stands just above it
        below = min((y for y, row in enumerate(rows) if set(row) & set(graph[node])), default=0)
        if below > 1:
            rows[0].remove(node)
            rows[below - 1].append(node)
    level = {n: y for y, row in enumerate(rows) for n in row}
    for a, b in list(graph.edges):
        points = [(a, b, y) for y in range(level[a] + 1, level[b])]
        if points:
            graph.remove_edge(a, b)
            nx.add_path(graph, [a, *points, b])
            for point in points:
                rows[point[2]].append(point)
    return _uncrossed(graph, rows)


def _uncrossed(graph: nx.DiGraph, rows: list[list[Any]]) -> list[list[Any]]:
    """Rows sorted by the places of what they are joined to, down and up, and the best of all tries."""
    best, fewest = rows, _crossings(graph, rows)
    for sweep in range(60):
        rows = [list(row) for row in rows]
        place = {n: i / max(1, len(row) - 1) for row in rows for i, n in enumerate(row)}
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            joined = {n: list(graph.predecessors(n) if down else graph.successors(n)) for n in row}
            middle = {n: sum(place[m] for m in ms) / len(ms) if ms else place[n] for n, ms in joined.items()}
            row.sort(key=lambda n: (middle[n], place[n]))
            place |= {n: i / max(1, len(row) - 1) for i, n in enumerate(row)}
        if (now := _crossings(graph, rows)) < fewest:
            best, fewest = rows, now
    return best


def _crossings(graph: nx.DiGraph, rows: list[list[Any]]) -> int:
    total = 0
    for upper, lower in itertools.pairwise(rows):
        place = {n: i for i, n in enumerate(lower)}
        ends = [sorted(place[m] for m in graph[n] if m in place) for n in upper]
        total += sum(x > y for i, left in enumerate(ends) for right in ends[i + 1 :] for x in left for y in right)
    return total


def _places(graph: nx.DiGraph, rows: list[list[Any]]) -> dict[Any, float]:
    """x of everything: as near to what it is joined to as the order in its row and the room allow."""
    x = {n: sum(2 * _half(m) + ACROSS for m in row[:i]) for row in rows for i, n in enumerate(row)}
    for _ in range(200):
        for row in rows:
            wanted = [sum(x[m] for m in ms) / len(ms) if (ms := [*nx.all_neighbors(graph, n)]) else x[n] for n in row]
            for i, n in enumerate(row):
                least = x[row[i - 1]] + _room(row[i - 1], n) if i else -1e9
                most = x[row[i + 1]] - _room(n, row[i + 1]) if i + 1 < len(row) else 1e9
                x[n] = max(least, min(wanted[i], most))
    left = min(x[n] - _half(n) for n in x)
    return {n: v - left + EDGE for n, v in x.items()}


def _half(node: Any) -> float:
    return max(11, len(node) + 2) * LETTER / 2 if isinstance(node, str) else 6


def _room(a: Any, b: Any) -> float:
    return _half(a) + _half(b) + ACROSS


# ---- the picture ----------------------------------------------------------------------------------------------------


def drawn(graph: nx.DiGraph) -> str:
    """The picture as SVG in the colours of the page."""
    circles = nx.condensation(graph)
    name = {n: " ⇄ ".join(sorted(data["members"])) for n, data in circles.nodes(data=True)}
    tips = {name[n]: " ".join(graph.nodes[m].get("tip", m) for m in d["members"]) for n, d in circles.nodes(data=True)}
    plain = nx.relabel_nodes(nx.transitive_reduction(circles), name)
    rows = _rows(plain)
    x = _places(plain, rows)
    y = {n: EDGE + HEIGHT / 2 + i * (HEIGHT + DOWN) for i, row in enumerate(rows) for n in row}
    width, height = max(x[n] + _half(n) for n in x) + EDGE, EDGE * 2 + len(rows) * (HEIGHT + DOWN) - DOWN
    lines = [f'<path d="{_curve(plain, (a, b), x, y)}"{_head(b)}/>' for a, b in plain.edges]
    boxes = [_boxed(n, x[n], y[n], tips[n]) for n in tips]
    return "\n".join(
        [
            f'<figure><svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img"'
            ' style="max-width: 100%" aria-label="Packages of fxprune; an arrow from one to each that imports it">',
            '<defs><marker id="package-arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7"'
            ' orient="auto"><path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>',
            '<g fill="none" stroke="currentColor" stroke-opacity=".55">',
            *lines,
            "</g>",
            '<g font-size="13" text-anchor="middle" fill="currentColor">',
            *boxes,
            "</g></svg></figure>",
        ]
    )


def _curve(graph: nx.DiGraph, edge: tuple[Any, Any], x: dict[Any, float], y: dict[Any, float]) -> str:
    a, b = edge
    top, end = y[a] + HEIGHT / 2, y[b] - HEIGHT / 2
    left, right = x[a] + _spread(a, list(graph[a]), b, x), x[b] + _spread(b, list(graph.predecessors(b)), a, x)
    middle = (top + end) / 2
    start = top if isinstance(a, str) else top - HEIGHT  # straight past the boxes of the row
    curve = f"{left:.1f} {middle:.1f} {right:.1f} {middle:.1f} {right:.1f} {end:.1f}"
    return f"M{left:.1f} {start:.1f}V{top:.1f}C{curve}"


def _spread(node: Any, others: list[Any], other: Any, x: dict[Any, float]) -> float:
    """Arrows of one box leave and meet it side by side, in the order of their other ends."""
    if not isinstance(node, str):
        return 0.0
    order = sorted(others, key=lambda n: x[n])
    return (order.index(other) - (len(order) - 1) / 2) * min(16, (2 * _half(node) - 20) / len(order))


def _head(node: Any) -> str:
    return ' marker-end="url(#package-arrow)"' if isinstance(node, str) else ""


def _boxed(name: str, x: float, y: float, tip: str) -> str:
    colour = "#ef6c00" if name in PLUGINS else "#00897b"
    alone = all((ROOT / FACE / f"{n}.py").exists() for n in name.split(" ⇄ "))
    dashed = ' stroke-dasharray="4 3"' if alone else ""
    tip = tip.replace("&", "&amp;").replace("<", "&lt;").replace("`", "")
    return (
        f'<g><title>{tip}</title><rect x="{x - _half(name):.1f}" y="{y - HEIGHT / 2:.1f}" width="{2 * _half(name)}"'
        f' height="{HEIGHT}" rx="6" fill="{colour}" fill-opacity=".16" stroke="{colour}"{dashed}/>'
        f'<text x="{x:.1f}" y="{y + 4.5:.1f}">{name}</text></g>'
    )
