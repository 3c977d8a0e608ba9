"""The rewritten graph as a model's forward: the last resort where the module's own Python cannot follow a plan.

The model keeps its class, its parameter names and its training mode; only `forward` is replaced, by running the traced
ATen graph with its shape constants recomputed.  Sizes that the model's Python had read from a tensor (a batch, a
sequence length) are read again at run time, so other batch sizes work as far as the graph itself allows.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import fx, nn

from fxprune.errors import SaveError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.program import Program, program_of
from fxprune.planning.plan import Plan

_PROGRAM, _TELL = "_fxprune_program", "_fxprune_tell"


def _graph_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    program = program_now(self)
    assert program is not None
    return program(self, args, kwargs, self.__dict__.get(_TELL))


def program_now(model: nn.Module) -> Program | None:
    """The graph that a model's forward runs in the mode that it is in; None: its own Python."""
    held: _Shared | None = model.__dict__.get(_PROGRAM)
    if held is None:
        return None
    return held.training if model.training and held.training is not None else held.program


@contextlib.contextmanager
def telling(model: nn.Module, tell: Callable[[fx.Node, Any], None]) -> Iterator[None]:
    """Within, a model whose forward is a graph tells every value; it calls no module that a hook could watch."""
    model.__dict__[_TELL] = tell
    try:
        yield
    finally:
        del model.__dict__[_TELL]


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
    small.__dict__[_PROGRAM] = _Shared(*programs)
    small.__dict__["forward"] = types.MethodType(_graph_forward, small)
