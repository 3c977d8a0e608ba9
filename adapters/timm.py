"""timm: the model's own image size and input channels, the widths it tells, and the name it is made by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.adapter import Adapter, Constructor, Files
from fxprune.adapters.likeness import alike
from fxprune.adapters.tensors import draw
from fxprune.errors import FxPruneError, InputsError, SaveError
from fxprune.graph.explain import meant
from fxprune.graph.modules import ExampleInputs, comes_from, evaluating
from fxprune.rewriting.attributes import entry_of
from fxprune.saving.files import read_object
from fxprune.saving.stock import CONFIG, bounded, empty_parameters
from fxprune.scoring.context import Loss
from fxprune.sources.data import classes_of, cross_entropy
from fxprune.sources.pictures import HALF, Pictures, images_in, labels_of, loader
from fxprune.stock.recall import called_with

MOST_CHANNELS = 16  # a first convolution over more reads patches (space to depth), not the image's own channels


class TimmAdapter(Adapter):
    """Models of `timm.create_model`: one image of `pretrained_cfg["input_size"]`.

    A model made with another `img_size=` or `in_chans=` says so in its patch embedding or first convolution, and that
    counts.  Knows no loss: timm models serve many tasks.  Images in sub-folders, one a class, are data for classifiers.
    """

    def recognises(self, given: object) -> bool:
        """A module defined in timm, with a `pretrained_cfg`."""
        return isinstance(given, nn.Module) and comes_from(given, "timm") and hasattr(given, "pretrained_cfg")

    def example_inputs(self, model: nn.Module) -> ExampleInputs:
        """One image, (1, C, H, W).

        Raises:
            InputsError: the model has no `input_size`.
        """
        cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
        size = cfg.get("input_size")
        if not size:
            raise InputsError(f"{type(model).__name__}.pretrained_cfg has no input_size: pass example_inputs=")
        channels, height, width = size
        first = _first_conv(model, cfg.get("first_conv"))
        if first is not None and first.in_channels < MOST_CHANNELS:
            channels = first.in_channels
        made_for = getattr(getattr(model, "patch_embed", None), "img_size", None)
        if isinstance(made_for, (tuple, list)) and len(made_for) == 2:
            height, width = made_for
        return (draw(model, (1, channels, height, width), torch.Generator().manual_seed(0)),)

    def constructor(self, model: nn.Module) -> Constructor | None:
        """`timm.create_model` by the architecture's name; its keywords are the arguments of the class, as far as it
        takes them.
        """
        import timm

        name = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
        if not isinstance(name, str) or not timm.is_model(name):
            return None
        given = dict(getattr(model, "_model_args", {}))

        def build(config: dict[str, Any]) -> nn.Module:
            made: nn.Module = timm.create_model(name, **{**given, **config})
            return made

        with torch.device("meta"):
            held = called_with(type(model), lambda: build({}))
            answers = {k: "" if k in given else _answer(build, k, v) for k, v in held.items() if v is not None}
        taken = {k: held[k] for k, words in answers.items() if not words}
        return Constructor(f'timm.create_model("{name}")', taken, build, {k: w for k, w in answers.items() if w})

    def widths(self, model: nn.Module) -> Mapping[str, tuple[str, int]]:
        """What `reset_classifier` makes a new classifier of: the width that the present one reads."""
        name = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
        name = name[0] if isinstance(name, (tuple, list)) and name else name
        names = dict(model.named_parameters())
        if not isinstance(name, str) or (weight := names.get(f"{name}.weight")) is None:
            return {}
        told = [n for n in ("num_features", "head_hidden_size") if getattr(model, n, None) == weight.shape[1]]
        return dict.fromkeys(told, (f"{name}.weight", 1))

    def described(self, before: nn.Module, after: nn.Module) -> Mapping[str, int]:
        """`num_features`, `head_hidden_size` and `feature_info`, which timm's own code and feature pyramids read.

        They are as the model gives them; `embed_dim` goes with `num_features` where the two were the same.
        """
        try:
            image = self.example_inputs(before)[0]
            old, new = _seen(before, image), _seen(after, image)
        except Exception:  # noqa: BLE001 - a model that does not run on timm's own image tells as before, and is stale
            return {}
        told = {name: w for name in old if (w := _width(before, name, old[name], new.get(name, ()))) is not None}
        if "num_features" in told and getattr(before, "embed_dim", None) == getattr(before, "num_features", None):
            told["embed_dim"] = told["num_features"]
        return told

    def config(self, model: nn.Module) -> dict[str, Any] | None:
        """The architecture's name and what `timm.create_model` was called with; None where these do not give it."""
        import timm

        cfg: dict[str, Any] = dict(getattr(model, "pretrained_cfg", None) or {})
        name = ".".join(str(part) for part in (cfg.get("architecture"), cfg.get("tag")) if part)
        given = dict(getattr(model, "_model_args", {}))
        if hasattr(timm.models, "get_model_args"):
            given |= timm.models.get_model_args(model)
        elif isinstance(getattr(model, "num_classes", None), int):
            given["num_classes"] = model.num_classes
        try:
            made = json.loads(json.dumps({"name": name, "arguments": given}))
            return made if alike(self.build(made), model) else None
        except Exception:  # noqa: BLE001 - whatever was changed in it, the folder then asks for model=
            return None

    def batches(self, given: Any, files: Files) -> tuple[Iterable[Any], Loss | None]:
        """Images (n, C, H, W), less the mean and over the deviation of `pretrained_cfg`, and labels."""
        images = images_in(files.path)
        labels = labels_of(files.path, images, classes_of(given))
        cfg: dict[str, Any] = dict(getattr(given, "pretrained_cfg", None) or {})
        shape = self.example_inputs(given)[0].shape[1:]
        norm = (cfg.get("mean") or HALF[0], cfg.get("std") or HALF[1])
        if any(
            isinstance(v, (tuple, list)) and len(v) not in (1, shape[0]) for v in norm
        ):  # other colours than trained
            norm = HALF
        return loader(Pictures(images, tuple(shape), {"labels": labels}, norm), files), cross_entropy

    def named(self, name: str, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
        """`timm.create_model(name, **arguments)`."""
        import timm

        architecture = name.partition(".")[0]
        if not timm.is_model(architecture):
            raise InputsError(
                f"timm {timm.__version__} has no model called {name!r:.60}{meant(architecture, timm.list_models())}"
            )
        made: nn.Module = timm.create_model(name, pretrained=pretrained, **arguments)
        return made

    def read(self, directory: Path) -> nn.Module | None:
        """A folder as `timm.models.save_for_hf` writes it: its config.json names the architecture."""
        name = read_object(directory / CONFIG).get("architecture") if (directory / CONFIG).is_file() else None
        if not isinstance(name, str):
            return None
        import timm

        try:
            with bounded(directory):
                made: nn.Module = timm.create_model(f"local-dir:{directory}", pretrained=True)
        except FxPruneError:
            raise
        except Exception as e:
            raise SaveError(f"{directory} cannot be read as timm's {name!r:.60}: {type(e).__name__}: {e}") from e
        return made

    def build(self, config: dict[str, Any]) -> nn.Module:
        """The architecture of that name, parameters on the meta device.

        Raises:
            SaveError: timm has none.
        """
        import timm

        name = str(config.get("name"))
        if not timm.is_model(name.partition(".")[0]):
            raise SaveError(f"the installed timm {timm.__version__} has no model called {name!r:.60}; update it")
        with empty_parameters():
            made: nn.Module = timm.create_model(name, pretrained=False, **config.get("arguments", {}))
        return made


def _seen(model: nn.Module, image: Tensor) -> dict[str, tuple[int, ...]]:
    """The shapes of what a model's descriptions speak of, by their names, as an image goes through it."""
    shapes: dict[str, tuple[int, ...]] = {}
    modules, rows = dict(model.named_modules()), getattr(model, "feature_info", None)
    prefix, rows = (
        ("feature_info", rows) if isinstance(rows, list) else ("feature_info.info", getattr(rows, "info", []))
    )
    handles = []
    for i, row in enumerate(rows):
        module, entry = modules.get(row.get("module", "")), f"{prefix}.{i}.num_chs"
        if module is None or not isinstance(row.get("num_chs"), int):
            continue

        def note(value: Any, entry: str = entry) -> None:
            value = value[0] if isinstance(value, (tuple, list)) and value else value
            if isinstance(value, Tensor):
                shapes[entry] = tuple(value.shape)

        if row.get("hook_type") == "forward_pre":
            handles.append(module.register_forward_pre_hook(lambda _, args, note=note: note(args)))
        else:
            handles.append(module.register_forward_hook(lambda _, args, out, note=note: note(out)))
    try:
        with evaluating(model), torch.no_grad():
            if not hasattr(model, "forward_head"):
                model(image)
                return shapes
            features = model.forward_features(image)  # type: ignore[operator]
            hidden = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    for name, value in (("num_features", features), ("head_hidden_size", hidden)):
        value = value[0] if isinstance(value, (tuple, list)) else value
        shapes[name] = tuple(value.shape)
    return shapes


def _width(model: nn.Module, name: str, old: tuple[int, ...], new: tuple[int, ...]) -> int | None:
    """What an entry should be: the new size of the axis that had the size which it tells; None where it is unclear."""
    try:
        held, key = entry_of(model, name)
    except LookupError:
        return None
    told = {n for o, n in zip(old[1:], new[1:], strict=False) if o == held[key]}
    changed = told - {held[key]}  # sizes of the image do not change
    return changed.pop() if len(changed) == 1 else held[key] if told and not changed else None


def _answer(build: Callable[[dict[str, Any]], nn.Module], key: str, value: Any) -> str:
    """What `create_model` says to a keyword that it does not hand on to the class: some architectures fix theirs."""
    try:
        build({key: value})
    except (TypeError, ValueError) as e:
        return f"create_model says {type(e).__name__}: {e}"
    return ""


def _first_conv(model: nn.Module, name: Any) -> nn.Conv2d | None:
    """The convolution that reads the image, by the name (or the first of several names) in `pretrained_cfg`."""
    name = name[0] if isinstance(name, (tuple, list)) and name else name
    if not isinstance(name, str):
        return None
    try:
        found = model.get_submodule(name)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Conv2d) and found.groups == 1 else None
