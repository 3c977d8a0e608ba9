"""Find criteria, schedulers and adapters by entry point: the built-in ones just as a third party's.

    kind          entry point group       what it holds
    criteria      fxprune.criteria        classes whose instances are called with a `Context`
    schedulers    fxprune.schedulers      classes whose instances say how far to prune at each step
    adapters      fxprune.adapters        subclasses of `fxprune.adapter.Adapter`

Listing imports nothing; `get` imports one.  A plugin that cannot be imported is named in a `PluginError` when it is
asked for, and does no harm to the others.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import sys
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from fxprune.errors import CriterionError, FxPruneError, PluginError

Kind: TypeAlias = Literal["criteria", "schedulers", "adapters"]
KINDS: tuple[Kind, ...] = ("criteria", "schedulers", "adapters")
OWN = "fxprune"
_SINGULAR = {"criteria": "criterion", "schedulers": "scheduler", "adapters": "adapter"}


@dataclass(frozen=True)
class Plugin:
    """What `fxprune list` shows of a plugin: its name, the package it comes from, one line about it."""

    name: str
    package: str
    summary: str


def names(kind: Kind) -> list[str]:
    """Names of all plugins of a kind, third parties' first.  Imports none."""
    return list(dict.fromkeys(point.name for point in _points(kind)))


def get(kind: Kind, name: str) -> type[Any]:
    """Import one plugin and return its class.

    Raises:
        CriterionError: no criterion has that name; says which one was probably meant, and lists all.
        PluginError: the same for a scheduler or an adapter; or the plugin cannot be imported, is no class, or two
            packages claim its name.
    """
    found = [point for point in _points(kind) if point.name == name]
    if not found:
        raise _unknown(kind, name)
    if len(found) > 1:
        packages = " and ".join(sorted(_package(point) for point in found))
        raise PluginError(f"{packages} both register a {_SINGULAR[kind]} called {name!r}; uninstall one of them")
    return _load(kind, found[0])


def make(kind: Kind, name: str) -> Any:
    """An instance of a plugin, with its default options.

    Raises:
        CriterionError, PluginError: as `get`; or the class cannot be called without arguments.
    """
    plugin = get(kind, name)
    try:
        return plugin()
    except Exception as e:
        what = f"{_SINGULAR[kind]} {name!r}" + (f" of package {origin!r}" if (origin := package(kind, name)) else "")
        raise PluginError(
            f"the {what} cannot be made: {type(e).__name__}: {e}; its options need defaults, or pass an instance"
        ) from e


def package(kind: Kind, name: str) -> str:
    """The third-party package that registered a name; "" for ours and for names that nobody registered."""
    packages = (_package(point) for point in _points(kind) if point.name == name)
    return next((p for p in packages if p != OWN), "")


def package_of(kind: Kind, plugin: type[Any]) -> str:
    """The third-party package that registered a class; "" for ours and for classes that nobody registered."""
    value = f"{plugin.__module__}:{plugin.__qualname__}"
    packages = (_package(point) for point in _points(kind) if point.value == value)
    return next((p for p in packages if p != OWN), "")


def names_with_origin(kind: Kind) -> list[Plugin]:
    """Name, package and first docstring line of all plugins.  Imports them; a broken one says so in its summary."""
    return [Plugin(point.name, _package(point), _summary(kind, point)) for point in _points(kind)]


@functools.cache
def _scan(group: str, path: tuple[str, ...]) -> tuple[importlib.metadata.EntryPoint, ...]:
    """Entry points of a group, own ones last; an exact repetition (an installation seen twice) counts once.

    A scan reads every distribution on `path` (sys.path), so it is done once.
    """
    unique: dict[tuple[str, str], importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=group):
        unique.setdefault((point.name, point.value), point)
    return tuple(sorted(unique.values(), key=lambda point: (_package(point) == OWN, point.name)))


def _points(kind: Kind) -> tuple[importlib.metadata.EntryPoint, ...]:
    """The entry points of a kind."""
    if kind not in KINDS:
        raise PluginError(f"there are no plugins of kind {kind!r}; use one of {', '.join(KINDS)}")
    return _scan(f"{OWN}.{kind}", tuple(sys.path))


def _package(point: importlib.metadata.EntryPoint) -> str:
    """Name of the distribution that registered an entry point."""
    return point.dist.name if point.dist is not None else "an unknown package"


def _unknown(kind: Kind, name: str) -> FxPruneError:
    known = names(kind)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    error = CriterionError if kind == "criteria" else PluginError
    return error(f"there is no {_SINGULAR[kind]} called {name!r}{hint} Installed: {', '.join(sorted(known)) or 'none'}")


def _load(kind: Kind, point: importlib.metadata.EntryPoint) -> type[Any]:
    what = f"{_SINGULAR[kind]} {point.name!r} of package {_package(point)!r}"
    try:
        loaded = point.load()
    except Exception as e:
        raise PluginError(
            f"the {what} cannot be imported: {type(e).__name__}: {e} (from {point.value}); "
            f"repair or reinstall {_package(point)}"
        ) from e
    if not isinstance(loaded, type):
        raise PluginError(f"the {what} is a {type(loaded).__name__}, not a class; register a class ({point.value})")
    return loaded


def _summary(kind: Kind, point: importlib.metadata.EntryPoint) -> str:
    try:
        doc = _load(kind, point).__doc__
    except PluginError as e:
        return f"broken: {e}"
    return (doc or "").strip().partition("\n")[0]
