"""The model card: a README.md that says where a pruned model comes from, what went, and what was measured.

It starts with the YAML header that model hubs read.  `library_name` is fxprune, as no other library reads the folder;
the model's own is a tag.  Licence, base models, tags and the like are carried over from the card of what was pruned, in
the folder that it was read from.  Its last line holds a checksum, by which `save` tells its own card from one that
somebody has edited and would lose.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fxprune.planning.plan import Plan
from fxprune.reporting.report import Report

CARD = "README.md"
CARRIED = ("base_model", "license", "license_name", "license_link", "language", "pipeline_tag", "datasets", "tags")
LIBRARY = "fxprune"
TAGS = (LIBRARY, "structural-pruning")
MOST, LONGEST = 100, 200  # entries of a list and characters of an entry that are carried over
_HUB = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_MARK = re.compile(r"\n<!-- written by fxprune, ([0-9a-f]{16}) -->\n\Z")


def card(
    kind: str,
    library: str,
    reports: Mapping[str, Report],
    versions: Mapping[str, str],
    metrics: Mapping[str, Any] | None,
    source: Any = None,
    use: str = "",
) -> str:
    """The text of a card.

    Args:
        kind: the class of the model or pipeline.
        library: the package that it is of.
        reports: of its pruned parts, by name; "" for a model itself.
        source: the folder or hub name that the unpruned model was read from, where known.
        use: what to type to load it: see `snippet`.
    """
    head: dict[str, Any] = {"library_name": LIBRARY, **_carried(source)}
    own = (*TAGS, *([library] if library in versions and library != LIBRARY else ()))
    head["tags"] = list(dict.fromkeys((*own, *_listed(head.get("tags")))))
    lines = ["---", *(f"{k}: {json.dumps(v)}" for k, v in head.items()), "---", "", f"# {kind}, saved by fxprune", ""]
    for name, made in reports.items():
        lines += [f"## {name}", ""] if name else []
        if made.earlier:
            lines += [f"In all, by {len(made.earlier) + 1} plans:", "", *_plan(made.total)]
        for plan in (*made.earlier, made.plan):
            lines += _plan(plan)
        told = [*map(str, made.checks), *filter(None, [made.speed])]
        lines += [f"- {line}" for line in told] + [""] * bool(told)
    if metrics:
        lines += ["## Measured", "", *_table(("", "value"), [(k, _text(v)) for k, v in metrics.items()])]
    wrote = ", ".join(f"{k} {v}" for k, v in versions.items())
    lines += ["## Use", "", "```python", "import fxprune", "", use or snippet(kind), "```", ""]
    return _signed("\n".join([*lines, f"Written with {wrote}.", ""]))


def snippet(
    kind: str, pipeline: bool = False, needs: bool = False, place: str | None = None, variant: str | None = None
) -> str:
    """The line that loads a folder.

    Args:
        needs: an unpruned module of the class must be passed.
        place: its name on the hub.

    >>> snippet("Net", needs=True)
    'model = fxprune.load("path/to/this/folder", model=Net(...))  # an unpruned Net'
    """
    where = json.dumps(place or "path/to/this/folder")
    options = (f", model={kind}(...)" if needs else "") + (f', variant="{variant}"' if variant else "")
    told = f"  # an unpruned {kind}" if needs else ""
    name, load = ("pipeline", "load_pipeline") if pipeline else ("model", "load")
    return f"{name} = fxprune.{load}({where}{options}){told}"


def is_own(path: Path) -> bool:
    """Whether a card is as `card` made it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    mark = _MARK.search(text)
    return mark is not None and _digest(text[: mark.start()]) == mark[1]


def _plan(plan: Plan) -> list[str]:
    title = f"{plan.achieved:.1%} of {plan.of} removed (asked for: {plan.ratio:.1%}), by `{plan.criterion}`."
    rows = [(k, f"{a:,.0f}", f"{b:,.0f}", f"{b / a - 1 if a else 0:+.1%}") for k, (a, b) in sorted(plan.costs.items())]
    regrouped = [f"Regrouped norms: {', '.join(f'`{n}`' for n in plan.regrouped)}.", ""] if plan.regrouped else []
    return [title, "", *_table(("", "dense", "pruned", "change"), rows), *regrouped]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(r)} |" for r in (head, ["---"] * len(head), *rows)] + [""]


def _text(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _carried(source: Any) -> dict[str, Any]:
    """What the base model's own card says of it; a name on the hub stands for itself, a path never appears."""
    found = _entries(_card_of(source))
    if isinstance(source, str) and _HUB.fullmatch(source) and not Path(source).exists():
        bases = list(dict.fromkeys((source, *_listed(found.get("base_model")))))
        found["base_model"] = bases if len(bases) > 1 else source
    return found


def _card_of(source: Any) -> Path | None:
    if not isinstance(source, str) or not source:
        return None
    for folder in (Path(source), Path(source).parent):  # a component's folder lies in that of its pipeline
        if (folder / CARD).is_file():
            return folder / CARD
    return _cached(source)


def _cached(name: str) -> Path | None:
    """The card of a model of the hub, where an earlier download has left it."""
    if not _HUB.fullmatch(name):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(name, CARD)
    return Path(found) if isinstance(found, str) else None


def _entries(path: Path | None) -> dict[str, Any]:
    """Entries of a card's YAML header that are text or lists of text, as huggingface_hub reads them."""
    try:
        text = path.read_text(encoding="utf-8") if path else ""
        if not text.startswith("---\n"):
            return {}
        from huggingface_hub import ModelCard

        found = ModelCard(text, ignore_metadata_errors=True).data.to_dict()  # type: ignore[no-untyped-call]
    except Exception:  # noqa: BLE001 - a stranger's card may hold any YAML, and is no reason not to save
        return {}
    return {k: _plain(found[k]) for k in CARRIED if _plain(found.get(k))}


def _plain(value: Any) -> Any:
    """Text, or a list of text, of a bounded size; None for anything else."""
    if isinstance(value, list):
        return [v[:LONGEST] for v in value[:MOST] if isinstance(v, str)]
    return value[:LONGEST] if isinstance(value, str) else None


def _listed(value: Any) -> list[str]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _signed(text: str) -> str:
    return f"{text}\n<!-- written by fxprune, {_digest(text)} -->\n"
