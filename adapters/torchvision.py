"""torchvision: the image or clip size that each family of models was made for."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from fxprune.adapter import Adapter, Constructor, Files
from fxprune.adapters.likeness import alike
from fxprune.adapters.tensors import draw
from fxprune.errors import InputsError, SaveError
from fxprune.graph.explain import meant
from fxprune.graph.modules import ExampleInputs, comes_from
from fxprune.saving.stock import empty_parameters
from fxprune.scoring.context import Loss
from fxprune.sources.data import classes_of, cross_entropy
from fxprune.sources.pictures import Pictures, images_in, labels_of, loader
from fxprune.stock.recall import recalled

# The longest prefix of the class's module decides: (frames or None, side in pixels).
SIZES: dict[str, tuple[int | None, int]] = {
    "torchvision.models": (None, 224),
    "torchvision.models.inception": (None, 299),
    "torchvision.models.segmentation": (None, 224),
    "torchvision.models.video.resnet": (16, 112),
    "torchvision.models.video.s3d": (16, 224),
    "torchvision.models.video.mvit": (16, 224),
    "torchvision.models.video.swin_transformer": (16, 224),
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation that the library's weights saw
NO_FIXED_INPUT = ("torchvision.models.detection", "torchvision.models.optical_flow")


class TorchvisionAdapter(Adapter):
    """Models of torchvision: classification, segmentation and video.

    Detection and optical flow take lists or pairs of images of any size; what a detector does with boxes depends on
    their values, so that it is captured in parts (`fxprune.parts`).  Knows no loss of its own; images in sub-folders,
    one a class, are data for a classifier.
    """

    def recognises(self, given: object) -> bool:
        """A module defined in torchvision.models."""
        return isinstance(given, nn.Module) and comes_from(given, "torchvision.models")

    def example_inputs(self, model: nn.Module) -> ExampleInputs:
        """One image (1, 3, S, S) or clip (1, 3, T, S, S); a model with `image_size` says S itself.

        Raises:
            InputsError: for detection and optical flow.
        """
        module = next(c.__module__ for c in type(model).__mro__ if c.__module__.startswith("torchvision."))
        if module.startswith(NO_FIXED_INPUT):
            raise InputsError(
                f"{type(model).__name__} has no fixed input shape: pass example_inputs=, for a detector "
                "example_inputs=fxprune.parts(model, ([image, ...],))"
            )
        known = [name for name in SIZES if module == name or module.startswith(f"{name}.")]
        frames, side = SIZES[max(known, key=len)] if known else (None, 224)
        own = getattr(model, "image_size", None)
        side = own if isinstance(own, int) else side
        shape = (1, 3, side, side) if frames is None else (1, 3, frames, side, side)
        return (draw(model, shape, torch.Generator().manual_seed(0)),)

    def constructor(self, model: nn.Module) -> Constructor | None:
        """The model's class; torchvision records nothing, so what it was called with is recalled from the module."""
        return recalled(model)

    def batches(self, given: Any, files: Files) -> tuple[Iterable[Any], Loss | None]:
        """Images (n, 3, S, S), less ImageNet's mean and over its deviation, and labels."""
        images = images_in(files.path)
        labels = labels_of(files.path, images, classes_of(given))
        example: Any = self.example_inputs(given)
        shape = tuple(example[0].shape[1:])
        if len(shape) != 3:
            raise InputsError(f"{type(given).__name__} takes clips, which images are not: pass data= in Python")
        return loader(Pictures(images, shape, {"labels": labels}, IMAGENET), files), cross_entropy

    def named(self, name: str, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
        """`torchvision.models.get_model(name, **arguments)`."""
        from torchvision import models

        if name not in models.list_models():
            raise InputsError(f"torchvision has no model called {name!r:.60}{meant(name, models.list_models())}")
        takes = inspect.signature(models.get_model_builder(name)).parameters
        more = {} if pretrained or "weights_backbone" not in takes else {"weights_backbone": None}
        made: nn.Module = models.get_model(name, weights="DEFAULT" if pretrained else None, **more, **arguments)
        return made

    def config(self, model: nn.Module) -> dict[str, Any] | None:
        """A name and arguments of which torchvision makes such a model; None where none are found.

        torchvision records neither, so those whose function stands beside the class are tried.
        """
        for name, arguments in _candidates(model):
            try:
                with torch.device("meta"):
                    made = self.named(name, arguments, pretrained=False)
            except Exception:  # noqa: BLE001 - it is not made so
                continue
            if alike(made, model):
                return {"name": name, "arguments": arguments}
        return None

    def build(self, config: dict[str, Any]) -> nn.Module:
        """The model of that name, parameters on the meta device.

        Raises:
            SaveError: torchvision has none.
        """
        try:
            with empty_parameters():
                return self.named(str(config.get("name")), config.get("arguments", {}), pretrained=False)
        except InputsError as e:
            raise SaveError(f"{e}; update torchvision") from e


def _candidates(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """What may have made a model: names in its class's module, with its number of classes."""
    from torchvision import models

    names = [n for n in models.list_models() if models.get_model_builder(n).__module__ == type(model).__module__]
    last = next((p.shape[0] for p in reversed(list(model.parameters())) if p.dim()), None)
    for name in names:
        yield name, {}
        if last is not None:
            yield name, {"num_classes": int(last)}
