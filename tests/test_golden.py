"""Golden files: public signatures, and the groups of a few networks.  FXPRUNE_UPDATE=1 writes them anew."""

from __future__ import annotations

import dataclasses
import inspect
import os
from pathlib import Path

import pytest
import torch
from couplings import CASES

import fxprune

GOLDEN = Path(__file__).parent / "golden"


def signatures() -> str:
    lines = []
    for name in sorted(fxprune.__all__):
        thing = getattr(fxprune, name)
        if inspect.isclass(thing) and issubclass(thing, Exception):
            lines.append(f"{name}({', '.join(c.__name__ for c in thing.__bases__)})")
        elif dataclasses.is_dataclass(thing):
            lines.append(f"{name}: {', '.join(f.name for f in dataclasses.fields(thing))}")
            public = [m for m, v in vars(thing).items() if not m.startswith("_") and callable(v)]
            lines += [f"    .{m}{inspect.signature(getattr(thing, m))}" for m in public]
        else:
            lines.append(f"{name}{inspect.signature(thing)}")
    return "\n".join(lines) + "\n"


def groups_of(name: str) -> str:
    torch.manual_seed(0)
    cls, inputs, _ = CASES[name]
    graph = fxprune.trace(cls(), inputs())
    lines = [f"{g.name}: {len(g)} {g.kind} in {', '.join(map(repr, g.slices))}" for g in graph.groups]
    lines += [f"held {h.tensor}[{h.axis}] {h.positions}: {h.cause} ({h.op})" for h in graph.frozen()]
    return "\n".join(lines) + "\n"


def compare(file: str, text: str) -> None:
    path = GOLDEN / file
    if os.environ.get("FXPRUNE_UPDATE"):
        path.write_text(text)
    assert path.read_text() == text, (
        f"{file} differs; if that is meant, run FXPRUNE_UPDATE=1 pytest tests/test_golden.py"
    )


def test_public_signatures() -> None:
    compare("signatures.txt", signatures())


@pytest.mark.parametrize("name", ["Gqa", "MultiHead", "TransposedGroups", "Windows", "Written"])
def test_groups(name: str) -> None:
    compare(f"{name}.txt", groups_of(name))
