"""The zoo: name -> case.  Everything is built from a config with random weights; nothing is fetched."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from case import Case

LIBRARIES = (
    "research_nets",
    "detectors",
    "graph_nets",
    "decoders",
    "diffusers_nets",
    "transformers_nets",
    "torchvision_nets",
    "timm_nets",
)


def zoo() -> dict[str, Case]:
    """All cases, by name."""
    out: dict[str, Case] = {}
    for case in _all():
        assert case.name not in out, case.name
        out[case.name] = case
    return out


def _all() -> Iterator[Case]:
    for library in LIBRARIES:
        yield from importlib.import_module(library).cases()
