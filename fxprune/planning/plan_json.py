"""The fields of a plan, read from JSON text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from fxprune.errors import PlanError
from fxprune.planning.norms import NormChange

FORMAT = 1
_FIELDS = """
model fingerprint removed sizes norms ratio of achieved cost criterion traced blocks made_by uncounted config
"""


def plan_data(plan: Any) -> dict[str, Any]:
    """A plan as plain data."""
    data: dict[str, Any] = {f.name: getattr(plan, f.name) for f in fields(plan)}
    data = {name: dict(v) if isinstance(v, Mapping) else v for name, v in data.items()}
    data["norms"] = {node: asdict(change) for node, change in plan.norms.items()}
    data["cost"], data["format"] = data.pop("costs"), FORMAT
    return data


def text_of(data: Any, depth: int = 2, nan: bool = True, indent: str = "") -> str:
    """JSON text with a line for each entry of a dict, and of those within it.

    One number a line, as `json` indents them, would take twenty times as long.
    """
    if not (isinstance(data, dict) and data and depth):
        return json.dumps(data, allow_nan=nan)
    entries = (f"{indent} {json.dumps(k)}: {text_of(v, depth - 1, nan, indent + ' ')}" for k, v in data.items())
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def plan_fields(text: str) -> dict[str, Any]:
    """What `Plan.to_json` wrote, as arguments of `Plan`.

    Raises:
        PlanError: where the text is not a plan, or of a newer format.
    """
    try:
        return _fields(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as e:
        raise PlanError(f"not a plan: {type(e).__name__}: {e!s:.200}; write one with plan.to_json()") from e


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    if int(data.pop("format")) > FORMAT:
        raise PlanError("the plan is of a newer format; update fxprune")
    if unknown := data.keys() - set(_FIELDS.split()):
        raise TypeError(f"it has a field {min(unknown)!r:.60}, which plans have not")
    data["sizes"] = {str(k): _count(v) for k, v in data["sizes"].items()}
    data["removed"] = {str(k): tuple(_count(c) for c in v) for k, v in data["removed"].items()}
    if unknown := set(data["removed"]) - set(data["sizes"]):
        raise ValueError(f"it removes channels of {min(unknown)!r}, whose size it does not give")
    data["ratio"], data["achieved"] = _number(data["ratio"]), _number(data["achieved"])
    for key in ("model", "fingerprint", "of", "criterion"):
        if not isinstance(data[key], str):
            raise TypeError(f"{key} is a {type(data[key]).__name__}, not text")
    data["norms"] = {str(k): _norm(**v) for k, v in data["norms"].items()}
    data["costs"] = {str(k): _pair(v) for k, v in data.pop("cost").items()}
    data["traced"] = _names(data.get("traced", ["heads"]))
    if not data["traced"]:
        raise ValueError("traced is empty; it holds what the model was traced with, such as 'heads'")
    data["blocks"] = _names(data.get("blocks", []))
    data["made_by"] = {str(k): _names(v) for k, v in data.get("made_by", {}).items()}
    data["uncounted"] = _names(data.get("uncounted", []))
    data["config"] = {str(k): _entry(v) for k, v in data.get("config", {}).items()}
    return data


def _count(value: Any) -> int:
    """A number of channels, or the index of one."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no index or number of channels")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.60} is no finite number")
    return float(value)


def _pair(value: Any) -> tuple[float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"{value!r:.60} is no cost before and after")
    return _number(value[0]), _number(value[1])


def _entry(value: Any) -> tuple[float, float]:
    """An entry of a config before and after; whole numbers stay whole."""
    old, new = value
    if not all(type(v) in (int, float) and math.isfinite(v) for v in (old, new)):
        raise ValueError(f"config holds {value!r:.60}, which are no two numbers")
    return old, new


def _norm(before: Any, after: Any, exact: Any) -> NormChange:
    if not isinstance(exact, bool):
        raise TypeError(f"norms hold exact={exact!r:.60}, which is not true or false")
    if not all(type(n) is int and n > 0 for n in (before, after)):
        raise ValueError(f"norms hold {before!r:.60} -> {after!r:.60}, which are no numbers of groups")
    return NormChange(before, after, exact)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{value!r:.60} is no list of names")
    return tuple(value)
