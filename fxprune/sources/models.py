"""`open_model`: a model or pipeline from wherever it lies.

    open_model("small-ddpm")                    a folder that fxprune wrote
    open_model("path/to/pipeline")              of diffusers (a pipeline or a model), transformers or timm
    open_model("user/model")                    of the hub: its files are fetched by huggingface_hub
    open_model("timm:resnet18")                 by name, with the weights that its library fetches
    open_model("torchvision:resnet18", weights="mine.pth")
                                                by name, with weights of your own

Before a colon stands the name of an adapter, whose library makes the model: a plugin's family opens likewise.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune import registry
from fxprune.adapter import Adapter
from fxprune.arguments import MAPPING, PATH, takes
from fxprune.errors import FxPruneError, InputsError, SaveError
from fxprune.graph.explain import meant
from fxprune.saving import hub, pipelines, stock
from fxprune.saving.files import read_object, require_data
from fxprune.saving.folder import standing
from fxprune.saving.header import HEADER
from fxprune.saving.save import PathLike, load
from fxprune.sources.checkpoints import classes_in, fill, fitting, read_weights

RANDOM = "random"
HEADS = [HEADER, stock.INDEX, stock.CONFIG]  # files that say what a folder holds
DATA = ["*.json", "*.txt", "*.model"]  # what a model has beside its weights: config, vocabulary
CLASSES = "num_classes"


@takes(source=PATH, weights=PATH.or_none, arguments=MAPPING.or_none)
@torch.inference_mode(False)  # what is made there could not train
def open_model(
    source: PathLike,
    *,
    weights: PathLike | None = None,
    arguments: Mapping[str, Any] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Any:
    """A model or pipeline from a folder, from the hub, or by the name of its architecture.

    Args:
        source: a folder that fxprune, diffusers, transformers or timm wrote; a model's name on the hub; or
            "<adapter>:<architecture>", such as "timm:resnet18" or "torchvision:vit_b_16".
        weights: for an architecture: a checkpoint (.safetensors, or tensors that `torch.save` wrote), "random" for an
            untrained model; None: the weights that its library fetches. How many classes it has the file tells.
        arguments: for an architecture: what else its library's maker takes, such as {"in_chans": 1}.
        revision: branch, tag or commit on the hub.
        token: for the hub; None: the one that you have logged in with.

    Returns:
        The module, in eval mode, or the diffusers pipeline. Nothing of a folder is run.

    Raises:
        SaveError: there is nothing of that name, or it is damaged, or does not fit.
        InputsError: `weights` or `arguments` for what has its own.

    Example:
        >>> import fxprune
        >>> type(fxprune.open_model("torchvision:squeezenet1_1", weights="random")).__name__
        'SqueezeNet'
    """
    text = os.fspath(source)
    family, colon, name = text.partition(":")
    if colon and name and not Path(text).exists():
        return _by_name(family, name, weights, dict(arguments or {})).eval()
    given = [f"{k}=" for k, v in (("weights", weights), ("arguments", arguments)) if v is not None]
    if given:
        raise InputsError(
            f"{given[0]} goes with the name of an architecture, such as timm:resnet18; {text} has its own"
        )
    path = Path(text)
    made = _from_hub(text, revision, token) if _is_of_hub(path, text) else _from_folder(path)
    return made.eval() if isinstance(made, nn.Module) else made


# ---- by name -------------------------------------------------------------------------------------------------------


def _by_name(family: str, name: str, weights: PathLike | None, arguments: dict[str, Any]) -> nn.Module:
    families = registry.names("adapters")
    if family not in families:
        raise SaveError(
            f"there is no folder {family}:{name}, and no adapter called {family!r}{meant(family, families)}"
        )
    adapter: Adapter = registry.get("adapters", family)()
    if weights is None or os.fspath(weights) == RANDOM:
        return _made(adapter, family, name, arguments, pretrained=weights is None)
    state, where = read_weights(Path(weights)), os.fspath(weights)
    model = _made(adapter, family, name, arguments, pretrained=False)
    state = fitting(state, model)
    classes = classes_in(state, model)
    if classes is not None and CLASSES not in arguments:
        model = _made(adapter, family, name, {**arguments, CLASSES: classes}, pretrained=False)
    fill(model, state, where)
    return model


def _made(adapter: Adapter, family: str, name: str, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
            return adapter.named(name, arguments, pretrained)
    except FxPruneError:
        raise
    except Exception as e:
        given = f" with {dict(arguments)}" if arguments else ""
        hint = "; give a file of weights, or weights='random'" if pretrained else ""
        raise SaveError(f"{family}:{name} cannot be made{given}: {type(e).__name__}: {e!s:.300}{hint}") from e


# ---- folders -------------------------------------------------------------------------------------------------------


def _from_folder(path: Path) -> Any:
    if path.is_file():
        raise SaveError(
            f"{path} is a file: name the architecture that its weights are of, open_model('timm:resnet18', "
            f"weights='{path}')"
        )
    if not path.is_dir() or (path / HEADER).is_file():
        return load(path)
    if (path / stock.INDEX).is_file() or "_class_name" in _config(path):
        return pipelines.read_folder(path)
    require_data(path)
    made = _by_adapter(path)
    if made is None:
        raise SaveError(
            f"{path} is neither a diffusers pipeline ({stock.INDEX}), nor a model of diffusers, transformers or timm "
            f"({stock.CONFIG}), nor a folder that fxprune wrote ({HEADER})"
        )
    return made


def _config(path: Path) -> dict[str, Any]:
    return read_object(path / stock.CONFIG) if (path / stock.CONFIG).is_file() else {}


def _by_adapter(path: Path) -> nn.Module | None:
    """What the first adapter reads that knows such a folder; third parties' come first."""
    for name in registry.names("adapters"):
        made = registry.get("adapters", name)().read(path)
        if made is not None:
            found: nn.Module = made
            return found
    return None


# ---- the hub -------------------------------------------------------------------------------------------------------


def _is_of_hub(path: Path, text: str) -> bool:
    return hub.is_name(text) and not path.exists() and standing(path) == path


def _from_hub(name: str, revision: str | None, token: str | bool | None) -> Any:
    """What a name on the hub stands for; the files that its own library would fetch are fetched."""
    heads = hub.fetched(name, revision, token, HEADS)
    if (heads / HEADER).is_file():
        return load(name, revision=revision, token=token)
    if (heads / stock.INDEX).is_file():
        return pipelines.read_folder(_pipeline_of(name, revision, token))
    if not (heads / stock.CONFIG).is_file():
        raise SaveError(f"{name} on the hub has none of {', '.join(HEADS)}: fxprune knows no such model")
    folder = hub.fetched(name, revision, token, [*DATA, "*.safetensors"])
    if not any(folder.rglob("*.safetensors")):
        folder = hub.fetched(name, revision, token, [*DATA, "*.bin"], unread=["*.py"])
    made = _from_folder(folder)
    stock.set_source(made, name)
    return made


def _pipeline_of(name: str, revision: str | None, token: str | bool | None) -> Path:
    """The folder with what diffusers fetches of a pipeline."""
    try:
        diffusers = importlib.import_module("diffusers")
        return Path(diffusers.DiffusionPipeline.download(name, revision=revision, token=token))
    except Exception as e:
        raise SaveError(f"the pipeline {name} did not come from the hub: {type(e).__name__}: {e!s:.300}") from e
