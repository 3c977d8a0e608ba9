"""What a family of models must be asked, because no graph can show it: example inputs, a loss, data.

find_adapter(model)   the first adapter that recognises it: third parties' first, "generic" last
"""

from __future__ import annotations

import abc
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from torch import nn

from fxprune import registry
from fxprune.errors import InputsError, PluginError, SaveError
from fxprune.graph.modules import ExampleInputs
from fxprune.scoring.context import Loss
from fxprune.scoring.timesteps import Process, Timesteps

Back: TypeAlias = Callable[[nn.Module], Any]
LAST = "generic"


@dataclass(frozen=True)
class Constructor:
    """How a library itself makes a model: what `shape="stock"` asks which widths there can be.

    Attributes:
        name: what makes it, as one types it, such as "UNet2DModel.from_config".
        config: what made the model at hand: numbers, text, lists and dicts.
        build: a new model of such a config.
        refused: arguments that it fixes itself, and what it says where they are given.
    """

    name: str
    config: Mapping[str, Any]
    build: Callable[[dict[str, Any]], nn.Module] = field(repr=False)
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Files:
    """What a user has on disk to score or train with.

    Attributes:
        path: a folder of images, or text.
        batch: samples a batch.
        shuffle: in another order every time, from torch's generator; else in one order, drawn from `seed`.
        seed: see `shuffle`.
        tokenizer: folder or name of a tokenizer; None: that of the model's own folder.
    """

    path: Path
    batch: int = 16
    shuffle: bool = False
    seed: int = 0
    tokenizer: str | None = None


class Adapter(abc.ABC):
    """What fxprune asks about a model family.  Two methods must be written, the others have defaults.

    `given` is what the user passed: the module itself, or an object around it that `unwrap` understands.
    An adapter imports its library inside its methods only, after `comes_from` has said that the model is of it.
    """

    @abc.abstractmethod
    def recognises(self, given: object) -> bool:
        """Whether this adapter knows such an object; imports no library that the object did not come from."""

    @abc.abstractmethod
    def example_inputs(self, model: nn.Module) -> ExampleInputs:
        """Inputs that `model` runs on, on its device and in its dtype, deterministic.

        Raises:
            InputsError: where they cannot be known; says what to pass.
        """

    def unwrap(self, given: Any) -> tuple[nn.Module, Back]:
        """The module to prune, and a function from its replacement to what the user gets back."""
        return given, lambda model: model

    def seeing(self, timesteps: str | Timesteps) -> Adapter:
        """This adapter, with `loss_of` and `calibration` at such times of a diffusion process.

        Raises:
            InputsError: for models that know no times.
        """
        raise InputsError(f"timesteps={timesteps!r} is for diffusion models, which {type(self).__name__} does not know")

    def process(self, given: Any) -> Process | None:
        """The forward process of a diffusion model, for weights by time; None for others."""
        return None

    def loss_of(self, given: Any, seed: int = 0) -> Loss | None:
        """A deterministic `loss(model, batch)` that fits `calibration` and the batches users have, or None."""
        return None

    def training_loss(self, given: Any) -> Loss | None:
        """A loss to train with: as `loss_of`, but what it draws at random is drawn anew from torch's generator."""
        return self.loss_of(given)

    def calibration(self, given: Any, n: int = 8, seed: int = 0, progress: bool = False) -> list[Any] | None:
        """Batches for `loss_of`, `n` samples in all, made without data from the model itself; None if impossible."""
        return None

    def batches(self, given: Any, files: Files) -> tuple[Iterable[Any], Loss | None]:
        """Batches of a user's files, and the loss they are for; None: that of `loss_of`.

        Raises:
            InputsError: the family reads no files, or these are none that it reads.
        """
        raise InputsError(
            f"fxprune knows no files of data for a {type(given).__name__}: pass data= and loss= in Python, or use a "
            'criterion that needs no data, such as "magnitude"'
        )

    def named(self, name: str, arguments: Mapping[str, Any], pretrained: bool) -> nn.Module:
        """The library's own model of that name, for `fxprune.open_model("<this adapter>:<name>")`.

        Args:
            arguments: what else its maker takes.
            pretrained: with the weights that the library fetches for it.

        Raises:
            InputsError: the library has no model of that name.
        """
        raise InputsError(f"{type(self).__name__} makes no model by name; pass the folder of one")

    def read(self, directory: Path) -> nn.Module | None:
        """The model in a folder as the library itself writes it; None where the folder is not of this family.

        Raises:
            SaveError: it is of this family, and damaged.
        """
        return None

    def trajectories(self, given: Any, steps: int, n: int, seed: int = 0) -> tuple[list[Any], Loss] | None:
        """Batches and a loss on what `steps` of a sampler end at, `n` samples in all; None for what samples nothing."""
        return None

    def released(self, model: nn.Module) -> tuple[str | type, ...]:
        """Names or classes of outputs that only the model itself reads again, such as a cache: they hold no width."""
        return ()

    def protect(self, model: nn.Module) -> tuple[str, ...]:
        """Names of tensors and modules that must stay whole."""
        return ()

    def widths(self, model: nn.Module) -> Mapping[str, tuple[str, int]]:
        """Integers that only other code reads: attribute (dotted) -> the tensor and axis whose size it tells."""
        return {}

    def described(self, before: nn.Module, after: nn.Module) -> Mapping[str, int]:
        """Integers by which a pruned model describes itself to other code, as they should be: attribute -> value.

        Dotted names lead into lists and dicts, too (`feature_info.0.num_chs`).  For what can only be seen where the
        model runs; `widths` says what can be read off a tensor.
        """
        return {}

    def feeds(self, model: nn.Module, side: nn.Module) -> Mapping[str, str]:
        """Which inputs of a model take outputs of another (a ControlNet): input -> name of the output ("": all)."""
        return {}

    def side_inputs(self, side: nn.Module, given: Mapping[str, Any]) -> ExampleInputs:
        """Inputs of such another model, made of the keyword arguments that the model takes itself.

        Raises:
            InputsError: where they cannot be known; says what to pass.
        """
        raise InputsError(f"fxprune does not know the inputs of {type(side).__name__}: pass inputs=")

    def constructor(self, model: nn.Module) -> Constructor | None:
        """How the library makes such a model, and what made this one; None where nothing is recorded."""
        return None

    def config(self, model: nn.Module) -> dict[str, Any] | None:
        """What `build` needs to make the stock module again, as JSON data; None where that is unknown."""
        return None

    def build(self, config: dict[str, Any]) -> nn.Module:
        """The stock module of a `config`, its parameters on the meta device and its buffers real.

        Raises:
            SaveError: where the config names no class of the library.
        """
        raise SaveError(f"{type(self).__name__} cannot build a model from a config; pass model= a stock module")


def find_adapter(given: object) -> Adapter:
    """The first adapter that recognises a model, or an object around one such as a diffusers pipeline.

    An adapter that cannot be imported is skipped with a warning.

    Raises:
        InputsError: it is no module, and no adapter knows what it is.
    """
    for name in sorted(registry.names("adapters"), key=lambda n: n == LAST):
        try:
            adapter = cast(Adapter, registry.get("adapters", name)())
        except PluginError as e:
            warnings.warn(str(e), stacklevel=2)
            continue
        if adapter.recognises(given):
            return adapter
    raise InputsError(
        f"{type(given).__name__} is neither an nn.Module nor a pipeline that fxprune knows; pass the module to prune "
        "as model"
    )
