"""`fxprune list`: the criteria, schedulers and adapters that are installed."""

from __future__ import annotations

from dataclasses import asdict

from fxprune import registry
from fxprune.cli.console import print_table, told


def list_() -> None:
    """List criteria, schedulers and adapters: the built-in ones and those of other installed packages."""
    with told() as answer:
        for kind in registry.KINDS:
            found = registry.names_with_origin(kind)
            print_table(
                kind, {"name": "left", "package": "left", "": "left"}, [(p.name, p.package, p.summary) for p in found]
            )
            answer[kind] = [asdict(p) for p in found]
