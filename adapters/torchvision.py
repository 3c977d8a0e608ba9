"""torchvision: the image or clip size that each family of models was made for."""

from __future__ import annotations

import torch
from torch import nn

from fxprune.adapter import Adapter, Constructor
from fxprune.adapters.tensors import draw
from fxprune.errors import InputsError
from fxprune.graph.modules import ExampleInputs, comes_from
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
NO_FIXED_INPUT = ("torchvision.models.detection", "torchvision.models.optical_flow")


class TorchvisionAdapter(Adapter):
    """Models of torchvision: classification, segmentation and video.

    Detection and optical flow take lists or pairs whose treatment depends on the values, which `torch.export` cannot
    capture: prune their backbone.  Knows no loss.
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
                f"{type(model).__name__} has no fixed input shape: prune a part, such as model.backbone, or pass "
                "example_inputs="
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
