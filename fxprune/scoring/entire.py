"""A model in shards, put together for as long as it is looked at.

up to `LARGE` bytes, or on a GPU    in memory, where the shards are
more, on a CPU                      in a temporary file without a name, in the folder for these (TMPDIR), if it has room
                                    for what every process puts there: no process has more of it in memory than
                                    `fxprune.scoring.mapped` lets stay, and one tensor

Within, what is cut of it lies in such a file too; `kept` brings a result into memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from torch import nn

from fxprune.graph.modules import in_shards, sharded
from fxprune.graph.sharding import whole, whole_in
from fxprune.scoring import distributed as ranks
from fxprune.scoring import storage
from fxprune.scoring.mapped import Pages, Scratch, cut_to, scratch

M = TypeVar("M", bound=nn.Module)


@contextlib.contextmanager
def entire(model: M) -> Iterator[M]:
    """Within, a whole copy of a model in shards, which all processes must ask for; any other is given as it is.

    Raises:
        InputsError: as `fxprune.whole`.
    """
    if not sharded(model):
        yield model
    elif not _on_disk(model):
        yield whole(model)
    else:
        folder = Path(tempfile.gettempdir())
        with Pages() as pages, cut_to(Scratch(folder, pages)):
            yield whole_in(model, Scratch(folder, pages).moved)


def kept(made: M) -> M:
    """What is made of an entire model, with all that is not in shards in memory."""
    if scratch() is not None:
        for tensor in itertools.chain(made.parameters(), made.buffers()):
            if not in_shards(tensor):
                tensor.data = tensor.detach().clone()
    return made


def _on_disk(model: nn.Module) -> bool:
    """Whether it is large, on a CPU, and there is room for whole and small models of all processes of this machine."""
    parameters = list(model.parameters())
    size = sum(p.numel() * p.element_size() for p in parameters)
    if size <= storage.LARGE or any(p.device.type != "cpu" for p in parameters):
        return False
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.number()))
    return shutil.disk_usage(tempfile.gettempdir()).free > 2 * size * here + storage.SPARE
