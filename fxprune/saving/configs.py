"""Configurations that a stranger may have written: plain values, before any constructor sees them.

Refused, at any depth:

    code            auto_map, trust_remote_code and what else names code to run
    references      to a hub, an address or a file, which a constructor would fetch; names of backbones and tokenizers
    numbers         so large that nothing in the folder explains them
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fxprune.errors import SaveError

CODE = {"auto_map", "trust_remote_code", "remote_code", "custom_pipeline", "custom_generate", "code_revision"}
FETCHED = re.compile(r"backbone|tokenizer|(use_|hub_)?kernels|\w*pretrained_model\w*|\w*_(repo|repo_id|checkpoint)")
SOURCES = ("_name_or_path", "name_or_path", "id2label", "label2id")  # told, and never fetched
REFERENCE = re.compile(r"[\w.-]+/[\w.-]+([@:/].*)?|(hf[-_]hub|local-dir|timm|file|https?|s3|gs)\s*:.*", re.ASCII | re.S)
LARGE = 2**24
STEPS = 2**20  # the largest number for a part that has no weights, such as a schedule; those in use have a thousand
TOKENS = "tokenizer"  # whose config holds 10**30 for "no limit", and makes nothing of it
DEPTH = 64


def require_plain(config: Any, elements: int, where: str = "the config") -> None:
    """Check that a model's configuration asks for nothing but a model of the folder's size.

    Args:
        elements: of all tensors in the folder.

    Raises:
        SaveError: it names code, or something to fetch, or holds a number that the folder's size does not explain.
    """
    most = max(LARGE, elements)
    for key, path, value in _leaves(config, ""):
        if key in SOURCES or any(name in path.split(".") for name in SOURCES):
            continue
        if isinstance(value, str) and value and (FETCHED.fullmatch(key) or REFERENCE.fullmatch(value)):
            raise _refused(where, path, value, "is something to fetch")
        if isinstance(value, (int, float)) and not isinstance(value, bool) and most < abs(value) < float("inf"):
            raise _refused(where, path, value, "is larger than the folder's tensors explain")
    require_no_code(config, where)


def require_small(config: Any, where: str) -> None:
    """Check that the configuration of a part without weights names no code and asks for little.

    Raises:
        SaveError: it does not.
    """
    require_no_code(config, where)
    for _, path, value in _leaves(config, ""):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and STEPS < abs(value) < float("inf"):
            raise SaveError(
                f"{where} has {path[:80]} = {value!r:.60}, which is larger than the settings of any part without "
                "weights: correct it, if you trust this folder"
            )


def require_no_code(config: Any, where: str = "the config") -> None:
    """Check that a configuration names no code.

    Raises:
        SaveError: it does.
    """
    for key, path, value in _leaves(config, ""):
        named = CODE.intersection(path.split("."))
        if (key in CODE or named) and value not in (None, False):
            raise _refused(where, path, value, "names code, which fxprune does not run")


def _refused(where: str, path: str, value: Any, why: str) -> SaveError:
    return SaveError(f"{where} has {path[:80]} = {value!r:.60}, which {why}: pass fxprune.load(DIR, model=...)")


def _leaves(value: Any, path: str, key: str = "", depth: int = 0) -> Iterator[tuple[str, str, Any]]:
    """Every value in nested data: the key that it is under, its path, and itself; empty dicts and lists count."""
    if depth > DEPTH:
        raise SaveError(f"the config is nested deeper than {DEPTH} levels")
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if not items:
        yield key, path, value
        return
    for name, held in items:
        inner = f"{path}.{name}" if path else str(name)
        yield from _leaves(held, inner, str(name) if isinstance(value, Mapping) else key, depth + 1)
