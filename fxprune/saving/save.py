"""`save` and `load`: a pruned model as a folder of data.

    DIR/fxprune.json        class, config, plan, shapes, changed attributes, ...: see `fxprune.saving.header`
    DIR/model.safetensors   every parameter and buffer, the non-persistent ones too; tied tensors once (or shards of it)
    DIR/README.md           a model card: see `fxprune.saving.card`

`load` builds the stock class with empty parameters (or copies the stock module it is given), gives each tensor its
saved shape and value, and sets the changed integers.  Nothing of the folder is run.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.arguments import MODEL, Kind, takes
from fxprune.errors import SaveError
from fxprune.graph.copies import deep_copy
from fxprune.graph.offloading import at_rest
from fxprune.graph.turns import in_turn
from fxprune.reporting.report import attach
from fxprune.saving import checksums, hub, pipelines, stock, weights
from fxprune.saving.card import CARD, card, snippet
from fxprune.saving.describe import DTYPE_NAMES, describe, report_of, versions
from fxprune.saving.files import named, require_data
from fxprune.saving.folder import carry_variants, replacing, standing
from fxprune.saving.header import HEADER, Header, Saved, SavedPipeline, class_name, to_json
from fxprune.saving.header_reading import read
from fxprune.saving.restore import all_tensors, fill, fit, same_integers

PathLike = str | os.PathLike[str]
SHARD = "10GB"
STOCK = Kind("an unpruned module, or a callable that makes one", callable, SaveError).or_none


# ---- save ----------------------------------------------------------------------------------------


@takes(model=MODEL.raising(SaveError))
def save(
    model: Any,
    directory: PathLike,
    *,
    metrics: Mapping[str, Any] | None = None,
    max_shard_size: int | str = SHARD,
    variant: str | None = None,
) -> Path:
    """Write a model, pruned or not, or a diffusers pipeline with a pruned component, into a folder of its own.

    A previous save in this folder is replaced, in one step at the end.

    Args:
        model: a module, or a diffusers pipeline; it is left as it is.
        directory: a new or empty folder, or one that `save` wrote.
        metrics: what you measured, kept with the model: strings, finite numbers, lists and dicts of them.
        max_shard_size: bytes, or text such as "5GB": larger weights are split over several files.
        variant: a name for these weights, such as "fp16" or "ema", for a model that is saved in a folder beside others:
            those of other names stay. `load` takes the same.

    Returns:
        The folder.

    Raises:
        SaveError: where the folder holds anything else, or the model cannot be written so that `load` reads it.

    Example:
        >>> import tempfile, torch, fxprune
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> small = fxprune.prune(net, "magnitude", 0.5, example_inputs=torch.randn(1, 8), progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     again = fxprune.load(fxprune.save(small, folder), model=net)
        >>> again[0].out_features == small[0].out_features
        True
    """
    if not isinstance(model, nn.Module) and not pipelines.is_pipeline(model):
        raise SaveError(f"a {type(model).__name__} cannot be saved; pass an nn.Module or a diffusers pipeline as model")
    if variant is not None and not isinstance(model, nn.Module):
        raise SaveError(f"a pipeline has no variant={variant!r}: save its pruned component, or name another folder")
    limit = weights.size_of(max_shard_size)
    rest = at_rest(model) if isinstance(model, nn.Module) else contextlib.nullcontext()
    with in_turn, rest, replacing(directory) as folder:
        write(model, folder, metrics, limit, variant)
        if Path(directory).is_dir():
            carry_variants(Path(directory), folder, variant)
    return Path(directory)


def write(
    model: Any,
    folder: Path,
    metrics: Mapping[str, Any] | None = None,
    limit: int = 10**10,
    variant: str | None = None,
    place: str | None = None,
) -> None:
    """Write a model or pipeline, and its card, into a folder that is ours to fill.

    Args:
        limit: bytes of a file of weights.
        place: what its card says to load: a name on the hub, or None for a folder.
    """
    if isinstance(model, nn.Module):
        saved: Header = _write_model(model, folder, metrics, limit, variant)
        pruned = {"": model}
    else:
        pruned = {name: m for name, m in pipelines.modules_of(model).items() if report_of(m) is not None}
        saved = _write_pipeline(model, pruned, folder, metrics, limit)
    reports = {name: made for name, m in pruned.items() if (made := report_of(m)) is not None}
    needs = isinstance(saved, Saved) and saved.config is None
    use = snippet(saved.name, isinstance(saved, SavedPipeline), needs, place, variant)
    library, source = saved.module.partition(".")[0], stock.source_of(model)
    text = card(saved.name, library, reports, saved.versions, metrics, source, use)
    (folder / CARD).write_text(text, encoding="utf-8")


@takes(pipeline=MODEL.raising(SaveError))
def save_pipeline(
    pipeline: Any, directory: PathLike, *, metrics: Mapping[str, Any] | None = None, max_shard_size: int | str = SHARD
) -> Path:
    """`save`, for a diffusers pipeline only.

    Raises:
        SaveError: see `save`; or it is no pipeline.
    """
    if not pipelines.is_pipeline(pipeline):
        raise SaveError(f"a {type(pipeline).__name__} is no diffusers pipeline; use fxprune.save")
    return save(pipeline, directory, metrics=metrics, max_shard_size=max_shard_size)


def _write_model(
    model: nn.Module, folder: Path, metrics: Mapping[str, Any] | None, limit: int, variant: str | None = None
) -> Saved:
    header = named(HEADER, variant)
    saved = _loadable(model, describe(model, metrics))
    to_json(saved)  # what cannot be written is told before the weights are
    tensors = all_tensors(model)
    folder.mkdir(parents=True, exist_ok=True)
    with checksums.Beside() as beside:
        weights.write({name: tensors[name] for name in saved.tensors}, folder, limit, variant, beside.add)
        found = beside.found()
    found |= checksums.of_files(folder, weights.written(folder, variant) - found.keys())
    saved = replace(saved, checksums=found)
    (folder / header).write_text(to_json(saved, header), encoding="utf-8")
    return saved


def _loadable(model: nn.Module, saved: Saved) -> Saved:
    """The same without a config from which no stock module can be built; one that is built must become this model."""
    if saved.config is None:
        return saved
    try:
        net = stock.build(saved)
    except SaveError:
        return replace(saved, adapter=None, config=None)
    try:
        fit(net, saved)
        same_integers(net, model)
    except SaveError as e:
        raise SaveError(f"this {saved.name} could not be loaded again: {e}") from e
    return saved


def _write_pipeline(
    pipeline: Any, pruned: Mapping[str, nn.Module], folder: Path, metrics: Mapping[str, Any] | None, limit: int
) -> SavedPipeline:
    """The pipeline's own `save_pretrained`, but for the pruned components, which are written in our format."""
    if not pruned:
        raise SaveError(
            f"no component of this {type(pipeline).__name__} was pruned by fxprune; "
            "save it with pipeline.save_pretrained(DIR)"
        )
    pipelines.require_stock(pipeline, pruned)
    shell = copy.copy(pipeline)
    for name, module in pruned.items():
        writer = copy.copy(module)
        writer.__dict__["save_pretrained"] = lambda path, module=module: _write_model(module, Path(path), None, limit)
        shell.__dict__[name] = writer
    shell.save_pretrained(str(folder), safe_serialization=True, max_shard_size=limit)
    pipelines.name_components(folder, pipeline, pruned)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    modules = pipelines.modules_of(pipeline)
    saved = SavedPipeline(
        module=type(pipeline).__module__,
        name=class_name(type(pipeline)),
        components=tuple(pruned),
        dtypes={name: d for name, m in modules.items() if name not in pruned and (d := _dtype_of(name, m))},
        files=(*sorted(files), HEADER),
        versions=versions(pipeline),
        metrics=metrics,
        checksums=checksums.of_files(folder, files),
    )
    pipelines.read_index(folder, saved.components)  # what is written must load
    (folder / HEADER).write_text(to_json(saved), encoding="utf-8")
    return saved


def _dtype_of(name: str, module: nn.Module) -> str | None:
    """The one floating dtype of a pipeline's module, if it has one."""
    found = {t.dtype for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()}
    if torch.float64 in found:
        raise SaveError(
            f"{name} is in float64, which diffusers does not read back exactly; pipeline.{name}.float() first"
        )
    return DTYPE_NAMES.get(found.pop()) if len(found) == 1 else None


# ---- load ----------------------------------------------------------------------------------------


@takes(model=STOCK)
@torch.inference_mode(False)  # what is made there could not train
def load(
    directory: PathLike,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    device: str | torch.device = "cpu",
    torch_dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Any:
    """Read a model or pipeline that `save` wrote.  Nothing of the folder is run.

    Args:
        directory: the folder; or a model's name on the hub, such as "user/model", from where it is fetched.
        model: a stock module of the saved class, as it was before pruning, or a callable that makes one; it is not
            changed. Needed for models of your own; those of diffusers, transformers and timm are built from what was
            saved.
        device: where the result goes.
        torch_dtype: what floating-point weights are cast to, such as torch.float16 or "float16"; None or "auto": they
            stay as they were saved.
        variant: the name that the weights were saved by, such as "fp16".
        subfolder: where in the folder the model lies, such as "unet".
        revision: branch, tag or commit on the hub.
        token: for the hub; None: the one that you have logged in with.

    Returns:
        The module, in eval mode; `fxprune.report` tells what was pruned. Or the diffusers pipeline.

    Raises:
        SaveError: where the folder is missing, damaged or foreign, or does not fit `model`.
    """
    dtype = dtype_of(torch_dtype)
    path, source = hub.found(directory, subfolder, revision, token)
    while True:
        before = _identity(path)
        try:
            made = _loaded(standing(path), model, variant, source)
        except SaveError:
            if _identity(path) == before:
                raise
        if _identity(path) == before:  # else another process has saved there meanwhile, and this may be a bit of both
            break
    if dtype is not None:
        made = nn.Module.to(made, dtype) if isinstance(made, nn.Module) else made.to(dtype)
    return made if torch.device(device).type == "cpu" else made.to(device)


def dtype_of(given: torch.dtype | str | None) -> torch.dtype | None:
    """A floating dtype; None where the saved ones stay.

    Raises:
        SaveError: it is none.
    """
    found = getattr(torch, given.removeprefix("torch."), None) if isinstance(given, str) else given
    if given in (None, "auto"):
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise SaveError(f'torch_dtype={given!r:.60} must be a floating dtype, such as torch.float16, or "auto"')
    return found


def _identity(path: Path) -> tuple[int, int] | None:
    """Which folder stands at a path."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _loaded(
    path: Path, model: nn.Module | Callable[[], nn.Module] | None, variant: str | None = None, source: str | None = None
) -> Any:
    saved = _header_of(path, variant)
    require_data(path)
    if not isinstance(saved, SavedPipeline):
        return _load_model(saved, path, model, variant, source)
    if model is not None:
        raise SaveError(f"{path} holds a {saved.name} whole: load it without model=")
    return _load_pipeline(saved, path, variant)


def _header_of(path: Path, variant: str | None) -> Header:
    """What a folder says of itself; of a pipeline, which has no variants of its own, its own `save_pretrained` may have
    written it."""
    if (path / HEADER).exists() or not (pruned := pipelines.pruned_in(path)):
        whole = variant is not None and (path / stock.INDEX).is_file()
        return read(path, None if whole else variant)
    return SavedPipeline("diffusers", "pipeline", pruned, {}, ())


@takes()
@torch.inference_mode(False)
def load_pipeline(
    directory: PathLike,
    *,
    device: str | torch.device = "cpu",
    torch_dtype: torch.dtype | str | None = None,
    variant: str | None = None,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Any:
    """`load`, for a diffusers pipeline only.

    Raises:
        SaveError: see `load`; or the folder holds a single model.
    """
    path, _ = hub.found(directory, subfolder, revision, token)
    if isinstance(saved := _header_of(standing(path), variant), Saved):
        raise SaveError(f"{path} holds a {saved.name} alone; use fxprune.load")
    return load(path, device=device, torch_dtype=torch_dtype, variant=variant)


def _load_model(
    saved: Header,
    path: Path,
    model: nn.Module | Callable[[], nn.Module] | None,
    variant: str | None = None,
    source: str | None = None,
) -> nn.Module:
    if not isinstance(saved, Saved):
        raise SaveError(f"{path} holds a pipeline where a model should be")
    net = _stock_of(saved, path, model, variant)
    fit(net, saved)
    fill(net, saved, path, variant)
    checksums.require(path, saved.checksums)
    stock.set_source(net, source or str(path))
    if (told := saved.report) is not None:
        attach(net, told)
    return net.eval()


def _load_pipeline(saved: SavedPipeline, path: Path, variant: str | None = None) -> Any:
    index = pipelines.read_index(path, saved.components)
    if missing := [name for name in saved.components if name not in index]:
        raise SaveError(f"{path / stock.INDEX} does not name the pruned component {missing[0]!r}")
    inner = {name: read(path / name, variant) for name in saved.components}
    given = {name: _load_model(header, path / name, None, variant) for name, header in inner.items()}
    own = {f"{name}/{file}" for name, header in inner.items() for file in header.checksums if file != HEADER}
    absent = {name: None for name, value in index.items() if value == [None, None]}
    pipeline = pipelines.read_pipeline(path, {**absent, **given}, saved.dtypes)
    checksums.require(path, {name: v for name, v in saved.checksums.items() if name not in own})  # those were
    return pipeline


def _stock_of(
    saved: Saved, path: Path, model: nn.Module | Callable[[], nn.Module] | None, variant: str | None = None
) -> nn.Module:
    """An unpruned module of the saved class, ours to change."""
    if model is None:
        if saved.config is None:
            raise SaveError(
                f"no {saved.name} can be built from what the folder says: pass an unpruned one, "
                f"fxprune.load(DIR, model={saved.name}(...))"
            )
        return stock.build(saved, weights.size(path, variant))
    with in_turn:  # while another thread traces the module, its tensors hold nothing
        net = deep_copy(model) if isinstance(model, nn.Module) else _called(model)
    if not isinstance(net, nn.Module):
        raise SaveError(f"model= gave a {type(net).__name__}; pass a module, or a callable that returns one")
    if class_name(type(net)) != saved.name:
        raise SaveError(f"the folder holds a {saved.name}, model= is a {class_name(type(net))}")
    return net


def _called(make: Callable[[], nn.Module]) -> Any:
    try:
        return make()
    except Exception as e:
        raise SaveError(
            f"model= is called without arguments, and fails: {type(e).__name__}: {e}; pass a module, or a callable "
            "that makes one"
        ) from e
