"""`prune_folder`: prune a model on disk that need not fit into memory, from one folder into another.

Everything is `fxprune.prune` as it is, the proof included, on a model whose tensors are read from its files where they
are used (`fxprune.saving.streamed`).  What is cut goes to a temporary file beside the result, and from there to shards.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fxprune.api import prune
from fxprune.arguments import PATH, takes
from fxprune.errors import InputsError, PlanError
from fxprune.planning.plan import Plan
from fxprune.pruning.prune import apply
from fxprune.reporting.report import report
from fxprune.saving.folder import claim
from fxprune.saving.save import PathLike, save
from fxprune.saving.streamed import SHARD, opened
from fxprune.saving.weights import size_of
from fxprune.scoring.identity import told
from fxprune.scoring.mapped import Scratch, cut_to
from fxprune.scoring.score import DEFAULT_CRITERION, Criterion

NOT_HERE = {"training": None, "steps": None, "scheduler": "one_shot", "inplace": False}
NOT_YET = {"shape": "free", "nearest": False}
REPLAYED = ("example_inputs", "outputs", "verify", "strict")


@takes(source=PATH, destination=PATH, model=None)  # `opened` looks at the model
def prune_folder(
    source: PathLike,
    destination: PathLike,
    criterion: str | type[Any] | Criterion = DEFAULT_CRITERION,
    ratio: float | None = None,
    *,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    metrics: Any = None,
    max_shard_size: int | str = SHARD,
    **options: Any,
) -> Path:
    """Prune the model in a folder into another folder, for `fxprune.load`, with little of it in memory at a time.

    The weights are read from their files where they are used, by criteria that look at weights alone and by those that
    run the model, and by the proof (`verify=False` leaves that out); what stays of them goes to temporary files in the
    folder around `destination`, of which the shards are made.  Memory: half a gigabyte of files, and what the model
    computes; a shard where a temporary file cannot become one.

    The result is there whole or not at all.  A plan, once made, is kept beside `destination` until then: the same call
    goes on from it after a kill.

    Args:
        source: a diffusers model as `save_pretrained` writes it; with `model`, any folder of safetensors files.
        destination: a new or empty folder, or one that `save` wrote.
        criterion: see `prune`; "magnitude" and its kin read every weight once and run nothing.
        ratio: see `prune`.
        model: a module of the class in the folder, or a callable that makes one; its parameters may be on the meta
            device.
        metrics: see `save`.
        max_shard_size: see `save`; a shard is in memory while it is written.
        options: all others of `prune`, but for those of training.

    Returns:
        The folder.

    Raises:
        FxPruneError: as `prune` and `save`; or the folder and the model do not belong together.

    Example:
        >>> import tempfile, torch, fxprune
        >>> from safetensors.torch import save_file
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_file(net.state_dict(), f"{folder}/model.safetensors")
        ...     given = {"model": net, "example_inputs": torch.ones(1, 8), "progress": False}
        ...     made = fxprune.prune_folder(folder, f"{folder}-small", "magnitude", 0.5, **given)
        ...     small = fxprune.load(made, model=net)
        >>> small[0].out_features
        16
    """
    _check(options)
    target = Path(destination)
    claim(target)
    asked = {"criterion": criterion, "ratio": ratio, **options}
    kept = target.parent / f".{target.name}.plan.json"
    name = _identity(Path(source), asked)
    with opened(Path(source), model) as (net, pages):
        scratch = Scratch(target.parent, pages, size_of(max_shard_size))
        with cut_to(scratch):
            plan = _held(kept, name)
            if plan is None:
                small = prune(net, criterion, ratio, **{**options, "inplace": False})
            else:
                small = apply(net, plan, **{k: v for k, v in options.items() if k in REPLAYED})
            kept.write_text(json.dumps({"of": name, "plan": report(small).plan.to_json()}), encoding="utf-8")
            save(small, target, metrics=metrics, max_shard_size=max_shard_size)
    kept.unlink(missing_ok=True)
    return target


def _check(options: dict[str, Any]) -> None:
    known = inspect.signature(prune).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise InputsError(f"prune_folder() has no argument {unknown[0]!r}; those of fxprune.prune are")
    for name, only in NOT_YET.items():
        if options.get(name, only) != only:
            raise InputsError(
                f"prune_folder({name}={options[name]!r}): not from folder to folder; load it and prune it"
            )
    if options.get("of") == "latency":
        raise InputsError(
            "prune_folder(of='latency'): what would be timed is the disk; load the model and prune it, or say of='macs'"
        )
    for name, only in NOT_HERE.items():
        if options.get(name, only) != only:
            raise InputsError(f"prune_folder({name}=...): a folder is pruned once, without training; load it and train")


def _identity(source: Path, asked: dict[str, Any]) -> dict[str, str]:
    """What a plan was made of."""
    files = sorted(source.glob("*.safetensors")) if source.is_dir() else []
    stamps = [(p.name, (found := os.stat(p)).st_size, found.st_mtime_ns) for p in files]
    return {"files": repr(stamps), **{name: str(told(value)) for name, value in asked.items()}}


def _held(path: Path, name: dict[str, str]) -> Plan | None:
    """The plan that a call which was cut off had made, if it was the same call."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Plan.from_json(held["plan"]) if held["of"] == name else None
    except (OSError, ValueError, KeyError, TypeError, PlanError):
        return None
