"""What the adapters of diffusers models share: pipelines around a model, its config, and its task."""

from __future__ import annotations

import abc
import copy
import json
from typing import Any

from torch import nn

from fxprune.adapter import Adapter, Back, comes_from
from fxprune.adapters.autoencoding import Autoencoder
from fxprune.adapters.denoising import Denoiser
from fxprune.adapters.noising import noising_of
from fxprune.context import Loss
from fxprune.errors import InputsError, SaveError
from fxprune.trace import ExampleInputs

PARTS = ("unet", "transformer")


class DiffusersAdapter(Adapter):
    """A diffusers model, or a pipeline around its `unet` or `transformer`.

    The scheduler of a pipeline says how noise is added; without one the usual schedule of the family does.
    """

    @abc.abstractmethod
    def task(self, model: nn.Module) -> Denoiser | Autoencoder:
        """How to call the model.

        Raises:
            InputsError: for a model whose inputs are not known.
        """

    def unwrap(self, given: Any) -> tuple[nn.Module, Back]:
        """The model; its replacement comes back in a copy of the pipeline that shares everything else."""
        net = backbone(given)
        assert net is not None
        return net, lambda model: _put(given, net, model)

    def example_inputs(self, model: nn.Module) -> ExampleInputs:
        """Keyword arguments for a batch of one, from `model.config`."""
        return self.task(model).example_inputs(model)

    def loss_of(self, given: Any, seed: int | None = 0) -> Loss:
        """Noise prediction (or reconstruction), see the task."""
        task = self.task(self.unwrap(given)[0])
        if isinstance(task, Autoencoder):
            return task.loss
        return task.loss_of(noising_of(getattr(given, "scheduler", None), task.noising), seed)

    def training_loss(self, given: Any) -> Loss:
        """The same, with noise and times drawn anew at each call."""
        return self.loss_of(given, None)

    def calibration(self, given: Any, n: int = 8, seed: int = 0, progress: bool = False) -> list[Any]:
        """Samples that the model draws itself."""
        model = self.unwrap(given)[0]
        task = self.task(model)
        if isinstance(task, Autoencoder):
            return task.calibration(model, n, seed)
        noising = noising_of(getattr(given, "scheduler", None), task.noising)
        return task.calibration(model, noising, n, seed, progress)

    def config(self, model: nn.Module) -> dict[str, Any]:
        """`model.config`, with its class name under "_class_name"."""
        held: dict[str, Any] = json.loads(model.to_json_string())  # type: ignore[operator]
        return held

    def build(self, config: dict[str, Any]) -> nn.Module:
        """The stock model, its parameters on the meta device, its buffers real.

        Raises:
            SaveError: the config names no model class of diffusers.
        """
        import diffusers
        from accelerate import init_empty_weights

        name = config.get("_class_name")
        cls: Any = getattr(diffusers, str(name), None)
        known = isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)
        if not known:
            raise SaveError(f"diffusers has no model class called {name!r}; pass model= a stock module")
        with init_empty_weights(include_buffers=False):
            model: nn.Module = cls.from_config(config)
        return model


def backbone(given: object) -> nn.Module | None:
    """The diffusers model that an object is, or that a pipeline is built around; None for anything else."""
    if not comes_from(given, "diffusers"):
        return None
    if isinstance(given, nn.Module):
        return given
    parts = (getattr(given, name, None) for name in PARTS)
    return next((p for p in parts if isinstance(p, nn.Module) and comes_from(p, "diffusers")), None)


def unknown_inputs(model: nn.Module, what: str = "the inputs") -> InputsError:
    """The error for a diffusers model that an adapter cannot call."""
    return InputsError(f"fxprune does not know {what} of {type(model).__name__}: pass example_inputs=")


def side_of(config: Any, smallest: int) -> tuple[int, int]:
    """(height, width) of `config.sample_size`, an integer or a pair; `smallest` where the config leaves it open."""
    size = config.get("sample_size") or smallest
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _put(given: Any, old: nn.Module, new: nn.Module) -> Any:
    if given is old:
        return new
    if new is old:
        return given
    name = next(n for n in PARTS if getattr(given, n, None) is old)
    pipeline = copy.copy(given)
    setattr(pipeline, name, new)
    return pipeline
