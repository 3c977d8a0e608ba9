"""What a pruned model's own methods do: `save_pretrained` and `push_to_hub` write our folder, `from_config` refuses.

The libraries' own would write a config of the unpruned model beside weights that do not fit it, and say nothing.  So a
model with a report has these methods as attributes of its own, for whatever library it is of (`adopt`, called where the
report is attached).  A model that its config does describe, widths and all, keeps the library's.

In a diffusers pipeline, the pruned component's module is told to be `fxprune.pretrained`, so that the index which the
pipeline's own `save_pretrained` writes names what reads it.
"""

from __future__ import annotations

import functools
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.errors import SaveError
from fxprune.graph.copies import deep_copy
from fxprune.graph.modules import comes_from
from fxprune.reporting.report import report
from fxprune.saving import hub, stock, weights
from fxprune.saving.describe import describe, report_of
from fxprune.saving.folder import adding, claim
from fxprune.saving.restore import all_tensors
from fxprune.saving.save import SHARD, save, write

PUSHED = ("repo_id", "private", "token", "commit_message", "create_pr", "revision")
HARMLESS = ("save_function", "save_peft_format", "save_original_format")  # say how the library's own files are written
DEFAULTS = "_use_default_values"  # the first that `from_config` of diffusers asks a config for, and nothing else does


def adopt(model: nn.Module) -> None:
    """Give a model with a report, and models inside it, their own `save_pretrained` and `push_to_hub`, where their
    classes have them."""
    if report(model).plan.config:  # of a stock shape: the config is the model's own
        return
    for module in model.modules():
        for made in (SavePretrained, PushToHub):
            if callable(getattr(type(module), made.name, None)):
                module.__dict__[made.name] = made(module)
    if stock.is_stock(model) and _differs(model):
        model.__dict__["__module__"] = stock.LIBRARY
        model.__dict__["_internal_dict"] = _pruned_config()(model.config)


def _differs(model: nn.Module) -> bool:
    """Whether something was changed that a model made from the config would not have."""
    made = report_of(model)
    return made is not None and (bool(made.changes) or made.forward != "module")


def _is_as_built(model: nn.Module) -> bool:
    """Whether a model's config gives a module of its very tensors, so that its library reads what it writes."""
    try:
        saved = describe(model)
        net = stock.build(saved) if saved.config is not None else None
    except SaveError:
        return False
    shapes = {name: tuple(t.shape) for name, t in all_tensors(model).items()}
    return net is not None and {name: tuple(t.shape) for name, t in all_tensors(net).items()} == shapes


class _Own:
    """A method of one model, which it does not keep alive; a copy of the model has its own."""

    name = ""

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)

    @property
    def model(self) -> nn.Module:
        model = self._model()
        if model is None:
            raise SaveError(f"the model that {self.name} belongs to is gone: use fxprune.save(model, DIR)")
        return model

    def __reduce__(self) -> tuple[type[_Own], tuple[nn.Module]]:  # for copy and pickle
        return type(self), (self.model,)

    def own(self) -> Callable[..., Any] | None:
        """The library's own method, where what it writes can be read: a model that its config describes, or an adapter
        of transformers and peft, which is written without the model."""
        net = self.model
        adapter = getattr(net, "_hf_peft_config_loaded", False) is True and comes_from(net, "transformers")
        if not adapter and not _is_as_built(net):
            if report_of(net) is None:
                raise SaveError(
                    f"this {type(net).__name__} is part of a pruned model, and cannot be read without it: save the "
                    "whole model, fxprune.save(model, DIR)"
                )
            return None
        method: Callable[..., Any] = functools.partial(getattr(type(net), self.name), net)
        return method


class SavePretrained(_Own):
    """`model.save_pretrained`: what `fxprune.save` writes, among what the folder holds already."""

    name = "save_pretrained"

    def __call__(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write the model so that `fxprune.load` reads it; one that its config describes, as its library does.

        Args:
            state_dict: values to write instead of the model's own.
            options: with `push_to_hub`, those of huggingface_hub (`repo_id`, `private`, `token`, ...).

        Raises:
            SaveError: an option asks for what fxprune does not write; or as `fxprune.save`.
        """
        if (method := self.own()) is not None:
            given = {"state_dict": state_dict, "variant": variant, "max_shard_size": max_shard_size}
            options |= {k: v for k, v in given.items() if v is not None}
            options |= {} if safe_serialization else {"safe_serialization": False}
            method(save_directory, is_main_process=is_main_process, push_to_hub=push_to_hub, **options)
            return
        _require_known(options, (*PUSHED, *HARMLESS) if push_to_hub else (*HARMLESS, "token"))
        if not safe_serialization:
            raise SaveError("fxprune writes safetensors alone: leave out safe_serialization=False")
        if not is_main_process:
            return
        net = self.model if state_dict is None else _filled(self.model, state_dict)
        _save_among(net, save_directory, SHARD if max_shard_size is None else max_shard_size, variant)
        if push_to_hub:
            name = options.pop("repo_id", None) or Path(save_directory).name
            _push(net, name, None, SHARD if max_shard_size is None else max_shard_size, variant, options)


class PushToHub(_Own):
    """`model.push_to_hub`: what `fxprune.save` writes, uploaded."""

    name = "push_to_hub"

    def __call__(
        self,
        repo_id: str,
        *,
        variant: str | None = None,
        subfolder: str | None = None,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        **options: Any,
    ) -> Any:
        """Upload the model so that `fxprune.load(repo_id)` reads it; what huggingface_hub returns.

        Raises:
            SaveError: as `save_pretrained`; or the hub refuses.
        """
        if (method := self.own()) is not None:
            given = {"variant": variant, "subfolder": subfolder, "max_shard_size": max_shard_size}
            return method(repo_id, **{k: v for k, v in given.items() if v is not None}, **options)
        _require_known(options, PUSHED)
        if not safe_serialization:
            raise SaveError("fxprune writes safetensors alone: leave out safe_serialization=False")
        return _push(
            self.model, repo_id, subfolder, SHARD if max_shard_size is None else max_shard_size, variant, options
        )


def _require_known(options: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = next((k for k, v in options.items() if k not in known and v not in (None, False)), None)
    if unknown is not None:
        raise SaveError(
            f"{unknown}={options[unknown]!r:.60} is no option for a pruned model, which fxprune writes: leave it out, "
            "or use fxprune.save(model, DIR)"
        )


def _filled(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """The model with other values: a copy."""
    net = deep_copy(model)
    try:
        net.load_state_dict(state)
    except RuntimeError as e:
        raise SaveError(f"state_dict= does not fit this pruned {type(model).__name__}: {e!s:.300}") from e
    return net


def _save_among(model: nn.Module, directory: str | os.PathLike[str], limit: int | str, variant: str | None) -> None:
    """`save`, which replaces a folder of its own; or among the files that others keep there."""
    try:
        claim(directory)
    except SaveError:
        if not Path(directory).is_dir():
            raise
        with adding(directory, variant) as folder:
            folder.mkdir()
            write(model, folder, None, weights.size_of(limit), variant)
        return
    save(model, directory, max_shard_size=limit, variant=variant)


def _push(
    model: nn.Module, name: str, subfolder: str | None, limit: int | str, variant: str | None, options: dict[str, Any]
) -> Any:
    with tempfile.TemporaryDirectory(prefix="fxprune-") as inner:
        write(model, folder := Path(inner), None, weights.size_of(limit), variant, place=name)
        return hub.push(folder, name, subfolder, options)


# ---- diffusers ---------------------------------------------------------------------------------------------------


def __getattr__(name: str) -> Any:
    if name == "PrunedConfig":  # so that pickle finds the class
        return _pruned_config()
    raise AttributeError(f"module {__name__} has no attribute {name!r}")


@functools.cache
def _pruned_config() -> Any:
    from diffusers.configuration_utils import FrozenDict

    class PrunedConfig(FrozenDict):  # type: ignore[misc]
        """The config of a pruned model, which is that of the unpruned one: no model of its widths can be made of it."""

        def get(self, key: str, default: Any = None) -> Any:
            """As a dict's; `from_config` alone, and what calls it (`EMAModel.save_pretrained`), asks for defaults."""
            if key == DEFAULTS:
                raise SaveError(
                    "this is the config of a pruned model, of which from_config() would make the unpruned one. For a "
                    "copy, copy.deepcopy(model); to save averaged weights, ema.copy_to(model.parameters()) and "
                    "fxprune.save(model, DIR); for the unpruned model, from_config(dict(model.config))"
                )
            return super().get(key, default)

    PrunedConfig.__module__, PrunedConfig.__qualname__ = __name__, "PrunedConfig"
    return PrunedConfig
