"""`fxprune list`: the criteria, schedulers and adapters that are installed."""

from __future__ import annotations

from fxprune import registry
from fxprune.cli.console import print_table


def list_() -> None:
    """List criteria, schedulers and adapters: the built-in ones and those of other installed packages."""
    for kind in registry.KINDS:
        rows = [(p.name, p.package, p.summary) for p in registry.names_with_origin(kind)]
        print_table(kind, {"name": "left", "package": "left", "": "left"}, rows)
