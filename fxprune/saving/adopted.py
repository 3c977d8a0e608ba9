"""Temporary files of cut tensors that become files of weights as they are: nothing is written twice.

A safetensors file begins with the length of a header, and the header, which may end in spaces; then come the tensors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fxprune.scoring.mapped import HEAD, Part, Scratch

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
WORTH = 16  # times the room for the header, below which a file is written anew without it


@dataclass(frozen=True)
class Ready:
    """A temporary file that holds tensors of a model, and nothing else."""

    part: Part
    names: tuple[str, ...]
    header: bytes

    def become(self, path: Path) -> bool:
        """Make it the file of weights at a path; False where that cannot be."""
        return self.part.become(path, self.header)


def ready(tensors: Mapping[str, torch.Tensor], scratch: Scratch | None) -> Iterator[Ready]:
    """The temporary files all of whose tensors are among some of a model's."""
    places = {t.data_ptr(): name for name, t in tensors.items() if t.device.type == "cpu" and t.is_contiguous()}
    for part in () if scratch is None else scratch.parts:
        names = {places.get(address, ""): place for address, place in part.held.items()}
        if part.end < WORTH * HEAD or "" in names or len(names) < len(part.held):
            continue
        entries = {}
        for name, place in names.items():
            t = tensors[name]
            if t.nbytes != place.size or t.dtype not in NAMES:
                break
            offsets = [place.start - HEAD, place.start - HEAD + place.size]
            entries[name] = {"dtype": NAMES[t.dtype], "shape": list(t.shape), "data_offsets": offsets}
        else:
            text = json.dumps(entries, separators=(",", ":")).encode()
            yield Ready(part, tuple(names), (HEAD - 8).to_bytes(8, "little") + text.ljust(HEAD - 8))
