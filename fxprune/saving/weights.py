"""Tensors in safetensors files: one, or several with an index, laid out as others lay them out.

model.safetensors                                       all tensors, or
model-00001-of-00003.safetensors, ...                   some each, and
model.safetensors.index.json                            {"metadata": {...}, "weight_map": {tensor: file}}

A variant has its name in them: model.fp16.safetensors, model.fp16-00001-of-00003.safetensors.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from fxprune.errors import SaveError
from fxprune.saving.adopted import ready
from fxprune.saving.files import named, read_bytes
from fxprune.scoring.mapped import scratch

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SHARD = re.compile(r"model(\.\w+)?-\d{5}-of-\d{5}\.safetensors", re.ASCII)


def size_of(limit: int | str) -> int:
    """A number of bytes: an integer, or text such as "5GB".

    Raises:
        SaveError: where it is neither.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", str(limit).upper()) if isinstance(limit, str) else None
    size = limit if isinstance(limit, int) else int(float(found[1]) * UNITS[found[2]]) if found else 0
    if size <= 0:
        raise SaveError(f'max_shard_size={limit!r} is no size; write bytes, or text such as "5GB"')
    return size


def write(
    tensors: Mapping[str, torch.Tensor],
    folder: Path,
    limit: int,
    variant: str | None = None,
    done: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write tensors into files of at most `limit` bytes each (or of one tensor, where that is larger).

    Args:
        done: is told of each file of tensors when it is there.
    """
    there = {held.names: held for held in ready(tensors, scratch())}
    taken = {name for names in there for name in names}
    rest = {name: t for name, t in tensors.items() if name not in taken}
    parts = [*map(list, there), *(part for part in _parts(rest, limit) if part or not there)]

    def put(part: list[str], path: Path) -> None:
        held = there.get(tuple(part))
        if held is None or not held.become(path):
            _write({key: tensors[key] for key in part}, path)
        path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors gives it to its owner alone
        done(path)

    if len(parts) == 1:
        put(parts[0], folder / named(WEIGHTS, variant))
        return
    stem = named(WEIGHTS, variant).removesuffix(".safetensors")
    names = [f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        put(part, folder / name)
    where = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
    (folder / named(INDEX, variant)).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _parts(tensors: Mapping[str, torch.Tensor], limit: int) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if parts[-1] and used + tensor.nbytes > limit:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += tensor.nbytes
    return parts


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path)


def size(folder: Path, variant: str | None = None) -> int:
    """Bytes of the files of a folder's tensors; those that are missing have none.

    Raises:
        SaveError: where the index is damaged, or names files elsewhere.
    """
    return sum(path.stat().st_size for file in files(folder, variant) if (path := folder / file).is_file())


def written(folder: Path, variant: str | None = None) -> set[str]:
    """The names of a folder's files of tensors, and of their index."""
    index = named(INDEX, variant)
    return {*files(folder, variant), *([index] if (folder / index).exists() else [])}


def count(path: Path) -> int:
    """The number of tensors in a file.

    Raises:
        SaveError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as f:
            return len(f.keys())
    except (SafetensorError, OSError, ValueError, RuntimeError) as e:
        raise SaveError(f"{path} is damaged: {type(e).__name__}: {e}") from e


def files(folder: Path, variant: str | None = None) -> Mapping[str, set[str] | None]:
    """The files of a folder's tensors, and the names that each must hold (None: any).

    Raises:
        SaveError: where the index is damaged, or names files elsewhere.
    """
    path, whole = folder / named(INDEX, variant), named(WEIGHTS, variant)
    if not path.is_file():
        return {whole: None}
    if (folder / whole).exists():
        raise SaveError(f"{folder} holds both {whole} and {path.name}: it is no folder that fxprune.save() wrote")
    try:
        where = json.loads(read_bytes(path).decode("utf-8"))["weight_map"]
        pairs = [(str(name), str(file)) for name, file in where.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise SaveError(f"{path} is damaged: {type(e).__name__}: {e}") from e
    held: defaultdict[str, set[str]] = defaultdict(set)
    for name, file in pairs:
        if not _SHARD.fullmatch(file):
            raise SaveError(f"{path} is damaged or hostile: {file!r:.80} is no name of a file that fxprune writes")
        held[file].add(name)
    return held


def read(folder: Path, wanted: set[str], variant: str | None = None) -> Iterator[tuple[str, torch.Tensor, Path]]:
    """Each tensor of a folder with its name and its file, mapped from the disk.

    Raises:
        SaveError: where a file is missing or damaged, or the files do not hold the wanted names, each once.
    """
    from safetensors import SafetensorError, safe_open

    parts = files(folder, variant)
    seen: set[str] = set()
    for file, names in parts.items():
        path = folder / file
        try:
            with safe_open(path, framework="pt", device="cpu") as f:
                held = set(f.keys())
                expected = wanted if names is None else names
                if unknown := sorted(held ^ expected) or sorted(held - wanted) or sorted(held & seen):
                    raise SaveError(f"{path} and what lists its tensors do not agree: {unknown[0]!r:.80}")
                seen |= held
                for name in sorted(held):
                    yield name, f.get_tensor(name), path
        except (SafetensorError, OSError, ValueError, RuntimeError) as e:
            raise SaveError(f"{path} is damaged: {type(e).__name__}: {e}") from e
    if lost := sorted(wanted - seen):
        raise SaveError(f"{folder / named(INDEX, variant)} does not list {lost[0]!r:.80}: the folder is damaged")
