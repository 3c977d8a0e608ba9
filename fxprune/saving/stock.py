"""Stock models of the installed diffusers: described for saving, built again by name, read from folders.

Only classes that the installed diffusers (or transformers, for other parts of a pipeline) defines are ever built: a
name that comes from a file is looked up there, and nothing of the file is run.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from fxprune import registry
from fxprune.adapter import find_adapter
from fxprune.errors import FxPruneError, SaveError
from fxprune.graph.copies import deep_copy
from fxprune.rewriting.attributes import Change
from fxprune.saving import weights
from fxprune.saving.configs import TOKENS, require_no_code, require_plain, require_small
from fxprune.saving.files import read_object
from fxprune.saving.header import Saved, class_name, is_identifier
from fxprune.saving.isolation import isolated, within

A_SKIP = 500  # names that a module which was taken out may have had
LIBRARIES = ("diffusers", "transformers")  # whose classes a folder may name
ALIGNMENT = 64  # bytes, of torch's own tensors on the CPU
INDEX = "model_index.json"
CONFIG = "config.json"
SOURCE = "_name_or_path"
LIBRARY, NAME = "fxprune.pretrained", "PrunedModel"  # what saved indices name: keep them
INSTALL = 'pip install "fxprune[diffusers]"'


@contextlib.contextmanager
def empty_parameters() -> Iterator[None]:
    """Within, parameters that this thread's modules register are on the meta device; buffers and all else are real."""
    thread = threading.get_ident()

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta or threading.get_ident() != thread:
            return None
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]
    try:
        with torch.random.fork_rng(devices=[]):  # building must not disturb the caller's random numbers
            yield
    finally:
        handle.remove()


# ---- models --------------------------------------------------------------------------------------


def is_stock(model: nn.Module) -> bool:
    """Whether a model's very class is one of diffusers' own model classes."""
    if not type(model).__module__.startswith("diffusers."):
        return False
    from diffusers import ModelMixin

    return isinstance(model, ModelMixin)


def config_of(model: Any) -> dict[str, Any]:
    """The arguments that a stock model was made with, as JSON data."""
    given = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(given, default=_as_json))
    return plain


def _as_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def model_class(module: str, name: str) -> type[nn.Module]:
    """A model class of the installed diffusers.

    Raises:
        SaveError: where the names are not those of one.
    """
    parts = module.split(".")
    if parts[0] != "diffusers" or not all(map(is_identifier, (*parts, name))):
        raise SaveError(
            f"{module}.{name} is no model class of diffusers: pass an unpruned module of this class, "
            "fxprune.load(DIR, model=...)"
        )
    diffusers = diffusers_here()
    for place in (module, "diffusers"):  # a later diffusers may have moved it
        with contextlib.suppress(ImportError, RuntimeError):
            found = getattr(importlib.import_module(place), name, None)
            if isinstance(found, type) and issubclass(found, diffusers.ModelMixin):
                return found
    raise SaveError(f"the installed diffusers {diffusers.__version__} has no model class {module}.{name}; update it")


def recipe_of(model: nn.Module, changes: Sequence[Change] = ()) -> tuple[str | None, dict[str, Any] | None]:
    """What `build` needs: the name of an adapter (None for diffusers' own classes) and a config (None: unknown).

    Args:
        changes: what pruning changed; a config is told as it was before.
    """
    if is_stock(model):
        return None, config_of(model)
    config = (adapter := find_adapter(model)).config(_config_undone(model, changes))
    name = next(
        (n for n in registry.names("adapters") if config and type(adapter) is registry.get("adapters", n)), None
    )
    return (None, None) if name is None else (name, config)


def _config_undone(model: nn.Module, changes: Sequence[Change]) -> nn.Module:
    """The model with its config objects as they were: a copy that shares its tensors, if they were changed."""
    changed = [c for c in reversed(changes) if c.name.startswith("config.")]
    if not changed:
        return model
    net = deep_copy(model, [(t, t) for t in [*model.parameters(), *model.buffers()]])
    modules = dict(net.named_modules(remove_duplicate=False))
    for change in changed:
        setattr(modules[change.path].config, change.name.removeprefix("config."), change.before)
    return net


def source_of(given: Any) -> str | None:
    """Where a model or pipeline was read from, as its config says: a folder, or a name on the hub; None if unknown."""
    parts = (given, *(getattr(given, name, None) for name in ("unet", "transformer")))
    configs = [config for p in parts if (config := getattr(p, "config", None)) is not None]
    found = (getattr(config, SOURCE, None) for config in configs)
    return next((name for name in found if isinstance(name, str) and name), None)


def set_source(model: Any, source: str) -> None:
    """Note in a model's config where it was read from, as its library does."""
    config = getattr(model, "config", None)
    if hasattr(model, "register_to_config"):
        model.register_to_config(**{SOURCE: source})
    elif hasattr(config, SOURCE):
        setattr(config, SOURCE, source)


def build(saved: Saved, most: int | None = None) -> nn.Module:
    """The stock module of a saved model, its parameters on the meta device.

    Args:
        most: bytes of the files that hold its tensors: it has no more elements, whatever it says.

    Raises:
        SaveError: where its class is not known, or does not take the saved config.
    """
    config = dict(saved.config or {})
    names, elements = _size_of(saved)
    elements = elements if most is None else min(elements, most)
    require_plain(config, elements, f"the config of this {saved.name}")
    try:
        make = _maker(saved)
        with isolated(), within(names, elements), torch.random.fork_rng(devices=[]):
            net = make(config)
    except FxPruneError as e:
        raise SaveError(f"{saved.name} cannot be built: {e}") from e
    except Exception as e:
        raise SaveError(f"{saved.name} cannot be built from the saved config: {type(e).__name__}: {e}") from e
    if not isinstance(net, nn.Module) or class_name(type(net)) != saved.name:
        raise SaveError(f"the saved config gives a {class_name(type(net))}, not a {saved.name}")
    return net


def _size_of(saved: Saved) -> tuple[int, int]:
    """Names and elements of the tensors that a folder lists; what was taken out had some, too."""
    names = len(saved.tensors) + len(saved.tied) + A_SKIP * len(saved.skips)
    return names, sum(math.prod(info.shape) for info in saved.tensors.values())


def _maker(saved: Saved) -> Callable[[dict[str, Any]], Any]:
    """What makes the stock module of a config; its library is imported."""
    if saved.adapter is None:
        cls: Any = model_class(saved.module, saved.name)

        def make(config: dict[str, Any]) -> Any:
            with empty_parameters():
                return cls(**cls.extract_init_dict(config)[0])

        return make
    library = saved.module.partition(".")[0]
    if library in LIBRARIES and is_identifier(saved.name):
        with contextlib.suppress(ImportError, AttributeError, RuntimeError):
            getattr(importlib.import_module(library), saved.name)
    built: Callable[[dict[str, Any]], Any] = registry.get("adapters", saved.adapter)().build
    return built


def diffusers_here() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as e:
        raise SaveError(f"diffusers is needed for this model, and cannot be imported ({e}): {INSTALL}") from e


# ---- folders -------------------------------------------------------------------------------------


def is_stock_folder(directory: Path) -> bool:
    """Whether a folder is that of a diffusers pipeline or model."""
    return (directory / INDEX).is_file() or (directory / CONFIG).is_file()


def empty_model(directory: Path) -> nn.Module:
    """The diffusers model of a folder, its parameters on the meta device.

    Raises:
        SaveError: where the folder holds no such model, or its config is none.
    """
    if not (directory / CONFIG).is_file():
        raise SaveError(f"{directory} holds no {CONFIG} of a diffusers model; pass model=, a module of its class")
    cls, config = class_of(directory), read_object(directory / CONFIG)
    names, elements = _weight_of(directory)
    require_plain(config, elements, str(directory / CONFIG))
    try:
        with isolated(), within(names, elements) if names else contextlib.nullcontext(), empty_parameters():
            made: nn.Module = cls(**cls.extract_init_dict(config)[0])
    except FxPruneError:
        raise
    except Exception as e:
        raise SaveError(f"{directory} gives no {cls.__name__}: {type(e).__name__}: {e}") from e
    return made


def class_of(directory: Path) -> Any:
    """The diffusers class that a model's config names."""
    name = read_object(directory / CONFIG).get("_class_name")
    diffusers = diffusers_here()
    found = getattr(diffusers, name, None) if isinstance(name, str) and is_identifier(name) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise SaveError(
            f"{directory / CONFIG} names {name!r:.60}, which is no model of diffusers {diffusers.__version__}"
        )
    return found


def read_as(cls: Any, directory: Path, options: Mapping[str, Any]) -> Any:
    """What `cls.from_pretrained` reads from a folder, which may be a stranger's.

    Raises:
        SaveError: the folder is damaged, or asks for more than its weights explain.
    """
    elements = _weight_of(directory)[1]
    for path in sorted(directory.rglob("*.json")):
        if path.name == CONFIG:
            require_plain(read_object(path), elements, str(path))
        elif path.name.endswith(CONFIG):  # of a scheduler, a tokenizer, ...
            check = require_no_code if path.name.startswith(TOKENS) else require_small
            check(read_object(path), str(path))
    try:
        with bounded(directory):
            loaded = cls.from_pretrained(str(directory), **options)
    except SaveError:
        raise
    except Exception as e:
        raise SaveError(f"{directory} cannot be read as a {cls.__name__}: {type(e).__name__}: {e}") from e
    for module in getattr(loaded, "components", {"": loaded}).values():
        if isinstance(module, nn.Module):
            _align(module)
    return loaded


@contextlib.contextmanager
def bounded(directory: Path) -> Iterator[None]:
    """Within, nothing of a folder is run, and what is built has no more tensors and numbers than its files hold."""
    names, elements = _weight_of(directory)
    with isolated(), within(names, elements) if names else contextlib.nullcontext():
        yield


def _weight_of(directory: Path) -> tuple[int, int]:
    """Names and elements of the tensors in a folder's files of safetensors; zeros where others hold some."""
    names = size = 0
    for path in directory.rglob("*"):
        if path.name.endswith((".bin", ".pt", ".ckpt", ".pth")):
            return 0, 2**63
        if path.name.endswith(".safetensors"):
            names, size = names + weights.count(path), size + path.stat().st_size
    return names, size


def _align(module: nn.Module) -> None:
    """Weights on the CPU where torch would have put them: a file's bytes lie anywhere, and kernels round by that."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
