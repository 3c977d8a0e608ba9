"""What the adapters of diffusers models share: pipelines around a model, its config, and its task."""

from __future__ import annotations

import abc
import copy
import inspect
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fxprune.adapter import Adapter, Back, Constructor, Files
from fxprune.adapters.autoencoding import Autoencoder
from fxprune.adapters.denoising import ANYTIME, Denoiser
from fxprune.adapters.encoding import Encoders
from fxprune.adapters.noising import noising_of
from fxprune.adapters.tensors import draw
from fxprune.adapters.trajectories import trajectories
from fxprune.errors import InputsError
from fxprune.graph.modules import ExampleInputs, comes_from
from fxprune.saving.stock import config_of
from fxprune.scoring.context import Loss
from fxprune.scoring.timesteps import Process, Timesteps, chosen
from fxprune.sources.pictures import Pictures, captions_of, images_in, labels_of, loader

PARTS = ("unet", "transformer")
# input of a denoiser -> what kind of model gives it, and as which output
SIDE_OUTPUTS = {
    "down_block_additional_residuals": ("residuals", "down_block_res_samples"),
    "mid_block_additional_residual": ("residuals", "mid_block_res_sample"),
    "block_controlnet_hidden_states": ("samples", "controlnet_block_samples"),
    "controlnet_block_samples": ("samples", "controlnet_block_samples"),
    "controlnet_single_block_samples": ("samples", "controlnet_single_block_samples"),
    "down_intrablock_additional_residuals": ("", ""),
}
TEXT = "encoder_hidden_states"
ENCODERS = ("vae", "vqvae")  # parts of a pipeline that make latents of images


class DiffusersAdapter(Adapter):
    """A diffusers model, or a pipeline around its `unet` or `transformer`.

    The scheduler of a pipeline says how noise is added; without one the usual schedule of the family does.
    """

    timesteps: Timesteps = ANYTIME

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

    def feeds(self, model: nn.Module, side: nn.Module) -> dict[str, str]:
        """The inputs of a denoiser that ControlNets and T2I-Adapters of diffusers are for."""
        takes = inspect.signature(model.forward).parameters
        given = SIDE_OUTPUTS if comes_from(side, "diffusers") else {}
        said = set(inspect.signature(side.forward).parameters)
        named = {"residuals": "controlnet_cond" in said, "samples": "controlnet_cond" in said, "": "x" in said}
        return {name: field for name, (kind, field) in given.items() if name in takes and named[kind]}

    def side_inputs(self, side: nn.Module, given: Mapping[str, Any]) -> ExampleInputs:
        """Keyword arguments for a ControlNet or a T2I-Adapter: those of the denoiser, and a picture."""
        takes, config = inspect.signature(side.forward).parameters, getattr(side, "config", {})
        shared = {name: value for name, value in given.items() if name in takes and name != "return_dict"}
        latents = next((v for n in ("sample", "hidden_states") if (v := given.get(n)) is not None), None)
        if latents is None:
            return super().side_inputs(side, given)
        generator = torch.Generator().manual_seed(0)
        if "controlnet_cond" in takes and "controlnet_cond" not in shared:
            shape = latents.shape
            embed = getattr(getattr(getattr(side, "pos_embed_input", None), "proj", None), "in_channels", shape[1])
            shape = (shape[0], embed, *shape[2:]) if latents.dim() == 4 else shape
            if latents.dim() == 4 and "conditioning_channels" in config:
                times = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
                shape = (latents.shape[0], config["conditioning_channels"], *(times * s for s in latents.shape[2:]))
            shared["controlnet_cond"] = draw(side, tuple(shape), generator)
        if "x" in takes and "downscale_factor" in config:
            times = config["downscale_factor"]
            size = tuple(times * s for s in latents.shape[2:])
            return {"x": draw(side, (latents.shape[0], config["in_channels"], *size), generator)}
        return shared

    def constructor(self, model: nn.Module) -> Constructor | None:
        """`from_config`, with the model's own config; None for a class that is no ConfigMixin."""
        cls: Any = type(model)
        if not hasattr(cls, "extract_init_dict"):
            return None
        return Constructor(
            f"{cls.__name__}.from_config", config_of(model), lambda config: cls(**cls.extract_init_dict(config)[0])
        )

    def seeing(self, timesteps: str | Timesteps) -> DiffusersAdapter:
        """This adapter, with losses and calibration samples at such times."""
        other = copy.copy(self)
        other.timesteps = chosen(timesteps)
        return other

    def process(self, given: Any) -> Process | None:
        """That of the pipeline's scheduler, or the usual one of the family; None where the model has no such loss."""
        try:
            task = self.task(self.unwrap(given)[0])
            known = isinstance(task, Denoiser) and not task.no_loss
            return noising_of(getattr(given, "scheduler", None), task.noising) if known else None  # type: ignore[union-attr]
        except InputsError:
            return None

    def loss_of(self, given: Any, seed: int | None = 0) -> Loss:
        """Noise prediction (or reconstruction), see the task."""
        _, task = self._task_in(given)
        if isinstance(task, Autoencoder):
            return task.loss
        return task.loss_of(noising_of(getattr(given, "scheduler", None), task.noising), seed, self.timesteps)

    def training_loss(self, given: Any) -> Loss:
        """The same, with noise and times drawn anew at each call."""
        return self.loss_of(given, None)

    def calibration(self, given: Any, n: int = 8, seed: int = 0, progress: bool = False) -> list[Any]:
        """Samples that the model draws itself, for prompts where a pipeline reads them.

        Text conditions are random numbers, with a warning, where there is no pipeline with a text encoder.
        """
        model, task = self._task_in(given)
        if isinstance(task, Autoencoder):
            return task.calibration(model, n, seed)
        if task.prompted is None and TEXT in task.conditions(1, torch.Generator().manual_seed(0)):
            warnings.warn(
                f"the text conditions of this {type(model).__name__} are random numbers: give prune() the whole "
                "pipeline, whose text encoders make real ones, or data=",
                stacklevel=2,
            )
        noising = noising_of(getattr(given, "scheduler", None), task.noising)
        return task.calibration(model, noising, n, seed, progress, self.timesteps)

    def batches(self, given: Any, files: Files) -> tuple[Iterable[Any], Loss | None]:
        """Images in [-1, 1]; with captions where the pipeline reads prompts, with labels where the model takes classes.

        Those of a latent model are as large as its pipeline's encoder makes latents of.
        """
        model, task = self._task_in(given)
        if isinstance(task, Autoencoder):
            return loader(Pictures(images_in(files.path), _of_three(model, task.image), {}), files), None
        images = images_in(files.path)
        beside: dict[str, Sequence[Any]] = {}
        needed = task.conditions(1, torch.Generator().manual_seed(0)).keys() - task.made_up
        if task.prompted is not None:
            beside["prompt"] = captions_of(files.path, images)
        elif "class_labels" in needed:
            beside["class_labels"] = labels_of(files.path, images, _classes(model))
        elif needed:
            raise InputsError(
                f"{type(model).__name__} takes {', '.join(sorted(needed))}, which a folder of images does not tell: "
                "give the whole pipeline, whose encoders make them of captions, or pass data= in Python"
            )
        packed = given is not model and Encoders(given, model, task).packed
        return loader(Pictures(images, _pixels(given, model, task.image, packed), beside), files), None

    def trajectories(self, given: Any, steps: int, n: int, seed: int = 0) -> tuple[list[Any], Loss] | None:
        """Of the sampler that fits the pipeline's noise schedule; none for an autoencoder."""
        model, task = self._task_in(given)
        if isinstance(task, Autoencoder):
            return None
        return trajectories(task, model, noising_of(getattr(given, "scheduler", None), task.noising), steps, n, seed)

    def _task_in(self, given: Any) -> tuple[nn.Module, Denoiser | Autoencoder]:
        """The model, and its task with what the encoders of a pipeline around it can do."""
        model = self.unwrap(given)[0]
        task = self.task(model)
        if isinstance(task, Autoencoder) and self.timesteps is not ANYTIME:
            raise InputsError(f"{type(model).__name__} has no timesteps: leave timesteps= out")
        if given is model or isinstance(task, Autoencoder):
            return model, task
        encoders = Encoders(given, model, task)
        return model, replace(
            task, prepare=encoders.prepare, prompted=encoders.prompted if encoders.read_text else None
        )


def backbone(given: object) -> nn.Module | None:
    """The diffusers model that an object is, or that a pipeline is built around; None for anything else."""
    if not comes_from(given, "diffusers"):
        return None
    if isinstance(given, nn.Module):
        return given
    parts = (getattr(given, name, None) for name in PARTS)
    return next((p for p in parts if isinstance(p, nn.Module) and comes_from(p, "diffusers")), None)


def _classes(model: nn.Module) -> int:
    """How many classes a denoiser is conditioned on.

    Raises:
        InputsError: its config does not say.
    """
    config: Any = model.config
    found = config.get("num_class_embeds") or config.get("num_embeds_ada_norm")
    if not found:
        raise InputsError(f"the config of {type(model).__name__} names no number of classes: pass data= in Python")
    return int(found)


def _pixels(given: Any, model: nn.Module, image: tuple[int, ...], packed: bool) -> tuple[int, int, int]:
    """The shape of the images that become a denoiser's samples: those samples, or what an encoder makes them of.

    Args:
        packed: whether a sample is a square of tokens, of two by two latents each.

    Raises:
        InputsError: its samples are no images, and no encoder is there.
    """
    encoder = next((e for n in ENCODERS if (e := getattr(given, n, None)) is not None), None)
    if encoder is None or not (len(image) == 3 or packed):
        return _of_three(model, image)
    factor = 2 ** (len(encoder.config.get("block_out_channels") or [1]) - 1)
    times = int(getattr(given, "vae_scale_factor", None) or factor)
    height, width = (2 * math.isqrt(image[0]),) * 2 if packed else image[1:]
    return (int(encoder.config["in_channels"]), height * times, width * times)


def _of_three(model: nn.Module, image: tuple[int, ...]) -> tuple[int, int, int]:
    if len(image) != 3:
        raise InputsError(f"{type(model).__name__} does not take images: pass data= in Python")
    return (image[0], image[1], image[2])


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
