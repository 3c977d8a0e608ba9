"""The rewritten graph as a model's forward: the last resort where the module's own Python cannot follow a plan.

The model keeps its class, its parameter names and its training mode; only `forward` is replaced, by running the traced
ATen graph with its shape constants recomputed.  Sizes that the model's Python had read from a tensor (a batch, a
sequence length) are read again at run time, so other batch sizes work as far as the graph itself allows.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune.errors import SaveError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.program import Program, program_of
from fxprune.planning.plan import Plan


def _graph_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    held: _Shared = self.__dict__["_fxprune_program"]
    program = held.training if self.training and held.training is not None else held.program
    return program(self, args, kwargs)


class _Shared:
    """Holds the program, and that of train mode where it is another one; copies of the model share them (they hold no
    state of the model)."""

    def __init__(self, program: Program, training: Program | None = None) -> None:
        self.program, self.training = program, training

    def __deepcopy__(self, memo: dict[int, Any]) -> _Shared:
        return self

    def __copy__(self) -> _Shared:
        return self

    def __reduce__(self) -> Any:
        raise SaveError(
            "a model whose forward is the rewritten graph cannot be pickled (torch.save, spawned processes); save its "
            "state_dict() and its plan (fxprune.report(model).plan.to_json()), and let fxprune.apply(dense, plan) make "
            "the model again before load_state_dict()"
        )


def use_graph(small: nn.Module, graph: ChannelGraph, plan: Plan, groups: Mapping[str, int]) -> None:
    """Make the rewritten graph the forward of `small`, whose tensors are already cut (`groups`: see `program_of`)."""
    programs = [program_of(view, plan.kept(graph), groups) for view in graph.modes]
    small.__dict__["_fxprune_program"] = _Shared(*programs)
    small.__dict__["forward"] = types.MethodType(_graph_forward, small)
