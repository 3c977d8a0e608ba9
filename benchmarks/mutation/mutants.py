"""Mutants of source files: one small change each, by the operators of cosmic-ray and one of our own.

cosmic-ray swaps operators, comparisons, numbers, booleans, `break` and exceptions, negates conditions, empties loops
and drops decorators.  `DROPPED` replaces a statement that is a bare call, or changes a value in place, by `pass`.  What
changes annotations alone is no mutant.
"""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import parso.tree  # noqa: F401 - before cosmic_ray, which imports it in a circle
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

DROPPED = "DropStatement"
LEFT_OUT = ("NoOp", "Variable")  # no change; and operators that want arguments


@dataclass(frozen=True)
class Mutant:
    """One change: a file, an operator, and where.

    Attributes:
        path: of the file, from the root of the checkout.
        family: the operator's name, without what it puts in place.
        operator, occurrence: what `mutated` needs.
        line: the first that changes.
    """

    path: str
    family: str
    operator: str
    occurrence: int
    line: int
    column: int

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}:{self.column} {self.operator.rpartition('/')[2]}"


def mutated(source: str, mutant: Mutant) -> str | None:
    """The file with the change; None where nothing changes but annotations."""
    if mutant.operator == DROPPED:
        changed: str | None = _dropped(source, mutant.line)
    else:
        changed = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    try:
        return None if changed is None or _plain(changed) == _plain(source) else changed
    except SyntaxError:  # `not` before a walrus, say
        return None


def drawn(root: Path, paths: list[str], number: int, seed: int) -> list[Mutant]:
    """A sample: of every file about as many places, and at each of them one change drawn at random.

    Args:
        root: of the checkout.
        paths: of the files.
        number: how many mutants, if there are so many.
        seed: the same one draws the same mutants of the same files.
    """
    dice = random.Random(seed)
    queues: dict[str, list[list[Mutant]]] = {}
    for path in paths:
        places: dict[tuple[int, int, str], list[Mutant]] = defaultdict(list)
        for mutant in _all(path, (root / path).read_text()):
            places[mutant.line, mutant.column, mutant.family].append(mutant)
        queues[path] = dice.sample(list(places.values()), len(places))
    out: list[Mutant] = []
    while len(out) < number and any(queues.values()):
        for path in [p for p in paths if queues[p]]:
            changes = queues[path].pop()
            dice.shuffle(changes)
            source = (root / path).read_text()
            out += [m for m in changes if mutated(source, m) is not None][:1]
    return out[:number]


def _all(path: str, source: str) -> list[Mutant]:
    nodes = list(ast_nodes(get_ast(source)))
    out = []
    for name in sorted(operator_names()):
        short = name.rpartition("/")[2]
        if short.startswith(LEFT_OUT):
            continue
        operator = get_operator(name)()
        at = [place for node in nodes for place in operator.mutation_positions(node)]
        family = short.partition("_")[0]
        out += [Mutant(path, family, name, i, *start) for i, (start, _) in enumerate(at)]
    return out + [Mutant(path, DROPPED, DROPPED, 0, line, column) for line, column in _statements(source)]


def _statements(source: str) -> list[tuple[int, int]]:
    """Where they stand."""
    return [(n.lineno, n.col_offset) for n in _droppable(source)]


def _droppable(source: str) -> list[ast.Expr | ast.AugAssign]:
    """Bare calls and changes in place."""
    nodes = [n for n in ast.walk(ast.parse(source)) if isinstance(n, (ast.Expr, ast.AugAssign))]
    return [n for n in nodes if isinstance(n, ast.AugAssign) or isinstance(n.value, ast.Call)]


def _dropped(source: str, line: int) -> str:
    node = next(n for n in _droppable(source) if n.lineno == line)
    assert node.end_lineno is not None
    lines = source.splitlines(keepends=True)
    first = lines[line - 1][: node.col_offset] + "pass" + "\n" * (node.end_lineno - line)
    rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
    return "".join([*lines[: line - 1], first + rest, *lines[node.end_lineno :]])


class _Bare(ast.NodeTransformer):
    """Takes annotations off."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node


def _plain(source: str) -> str:
    return ast.dump(_Bare().visit(ast.parse(source)))
