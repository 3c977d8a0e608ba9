"""Any other module: nothing is known, so everything is asked for."""

from __future__ import annotations

from torch import nn

from fxprune.adapter import Adapter, Constructor
from fxprune.errors import InputsError
from fxprune.graph.modules import ExampleInputs
from fxprune.stock.recall import recalled


class GenericAdapter(Adapter):
    """The last resort: recognises every `nn.Module`, and knows neither its inputs nor a loss."""

    def recognises(self, given: object) -> bool:
        """True for any module."""
        return isinstance(given, nn.Module)

    def example_inputs(self, model: nn.Module) -> ExampleInputs:
        """Raises InputsError, always."""
        raise InputsError(
            f"fxprune cannot know the inputs of {type(model).__name__}: pass example_inputs= a tensor, a tuple of "
            "positional arguments, a dict of keyword arguments, or the pair (args_tuple, kwargs_dict)"
        )

    def constructor(self, model: nn.Module) -> Constructor | None:
        """The model's class, with arguments that are recalled from the module."""
        return recalled(model)
