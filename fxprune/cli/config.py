"""`--config FILE`, which says the same as the flags, and `--json`: two options that every command has.

The file is TOML or YAML.  Its keys are the options' names, MODEL is `model`; a table named after a command is for that
command alone.  Values become the defaults of the options, so that flags win and typer parses both alike.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fxprune.cli.commands import COMMANDS
from fxprune.cli.console import AS_JSON
from fxprune.errors import printable
from fxprune.graph.explain import meant

OWN = ("config", "json", "help")


def with_common(command: Callable[..., None]) -> Callable[..., None]:
    """A command with `--config` and `--json`."""

    @functools.wraps(command)
    def run(*args: Any, config: Path | None = None, json: bool = False, **given: Any) -> None:
        token = AS_JSON.set(json)
        try:
            command(*args, **given)
        finally:
            AS_JSON.reset(token)

    signature = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, default, kind in (("config", None, CONFIG), ("json", False, JSON))
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*signature.parameters.values(), *more)}
    return run


def _read(ctx: typer.Context, value: Path | None) -> Path | None:
    """The file's values as defaults of the command's options."""
    if value is not None:
        ctx.default_map = _defaults(ctx, value)
    return value


CONFIG = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", callback=_read, is_eager=True, help="TOML or YAML that says the same as the flags; flags win."
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout, all messages on stderr.")]


def _defaults(ctx: typer.Context, file: Path) -> dict[str, Any]:
    known = {name: p.name for p in ctx.command.params for name in _names(p) if p.name not in OWN}
    several = {p.name for p in ctx.command.params if getattr(p, "multiple", False)}
    held = _parsed(file)
    tables = {k: v for k, v in held.items() if k in COMMANDS and isinstance(v, Mapping)}
    given = {k: v for k, v in held.items() if k not in tables} | dict(tables.get(str(ctx.command.name), {}))
    out = {}
    for key, value in given.items():
        name = known.get(key.replace("_", "-"))
        if name is None:
            words = printable(f"{key!r:.60} is no option of fxprune {ctx.command.name}{meant(key, known)}")
            raise typer.BadParameter(f"{file}: {words}")
        out[str(name)] = _as_flags(value, name in several)
    return out


def _names(parameter: Any) -> list[str]:
    """What a file calls an option: its long names; an argument as its help does."""
    if parameter.param_type_name == "argument":
        return [str(parameter.metavar or parameter.name).lower()]
    return [name.lstrip("-") for name in parameter.opts if name.startswith("--")]


def _as_flags(value: Any, several: bool) -> Any:
    """A value as the command line has it: a table as NAME=VALUE items, a list for one option with commas between."""
    items = [f"{k}={v}" for k, v in value.items()] if isinstance(value, Mapping) else value
    return ",".join(map(str, items)) if isinstance(items, list) and not several else items


def _parsed(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        held = _yaml(text) if file.suffix in (".yaml", ".yml") else _toml(text)
    except (OSError, ValueError) as e:
        raise typer.BadParameter(f"{file} cannot be read: {type(e).__name__}: {printable(str(e))}") from e
    if not isinstance(held, dict) or not all(isinstance(k, str) for k in held):
        raise typer.BadParameter(f"{file} holds no options, such as `ratio = 0.4`")
    return held


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    return tomllib.loads(text)


def _yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as e:
        raise ValueError("YAML needs PyYAML: pip install pyyaml, or write TOML") from e
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(str(e)) from e
