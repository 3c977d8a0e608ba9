"""The fields of a plan, read from JSON text."""

from __future__ import annotations

import json
from typing import Any

from fxprune.errors import PlanError
from fxprune.planning.norms import NormChange

FORMAT = 1


def plan_fields(text: str) -> dict[str, Any]:
    """What `Plan.to_json` wrote, as arguments of `Plan`.

    Raises:
        PlanError: where the text is not a plan, or of a newer format.
    """
    try:
        return _fields(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise PlanError(f"not a plan: {type(e).__name__}: {e}; write one with plan.to_json()") from e


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    if int(data.pop("format")) > FORMAT:
        raise PlanError("the plan is of a newer format; update fxprune")
    data["sizes"] = {str(k): _count(v) for k, v in data["sizes"].items()}
    data["removed"] = {str(k): tuple(_count(c) for c in v) for k, v in data["removed"].items()}
    if unknown := set(data["removed"]) - set(data["sizes"]):
        raise ValueError(f"it removes channels of {min(unknown)!r}, whose size it does not give")
    data["ratio"], data["achieved"] = float(data["ratio"]), float(data["achieved"])
    for key in ("model", "fingerprint", "of", "criterion"):
        if not isinstance(data[key], str):
            raise TypeError(f"{key} is a {type(data[key]).__name__}, not text")
    data["norms"] = {str(k): NormChange(**v) for k, v in data["norms"].items()}
    data["costs"] = {str(k): (float(v[0]), float(v[1])) for k, v in data.pop("cost").items()}
    data["traced"] = tuple(str(step) for step in data.get("traced", ("heads",)))
    data["blocks"] = _names(data.get("blocks", []))
    data["uncounted"] = _names(data.get("uncounted", []))
    return data


def _count(value: Any) -> int:
    """A number of channels, or the index of one."""
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no index or number of channels")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{value!r:.60} is no list of names")
    return tuple(value)
