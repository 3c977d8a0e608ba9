"""From a model and a plan to a dense model of the same class.

1. every parameter and buffer loses the positions that go; tied tensors stay tied;
2. integers that the model's Python holds follow (see `fxprune.graph.equations`), those of torch.nn layers too;
3. an attention whose 1/sqrt(head_dim) is implicit keeps its temperature: the factor goes into the query weights;
4. modules of blocks that go are taken out (see `fxprune.rewriting.blocks`);
5. where the integers cannot be made to agree, the rewritten graph becomes the model's forward.
"""

from __future__ import annotations

import types
from dataclasses import dataclass

import torch
from torch import nn

from fxprune.arguments import MODULE, TEXT, takes
from fxprune.errors import PlanError, RewriteError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.copies import deep_copy, rebind
from fxprune.graph.equations import Equation
from fxprune.graph.labels import Axis, Bools
from fxprune.graph.program import group_counts
from fxprune.graph.provenance import Attr
from fxprune.graph.solving import Unsolved, solve
from fxprune.planning.plan import Plan, followed
from fxprune.rewriting.attributes import Change, set_attribute, sync_layers
from fxprune.rewriting.blocks import take_out
from fxprune.rewriting.graph_forward import use_graph
from fxprune.rewriting.skip import Skip, put
from fxprune.rewriting.slicing import FOLDED, cut_tensors, temperature_folds


@dataclass(frozen=True)
class Rewritten:
    """A dense model, the attributes that changed, and what its forward is: "module" or "graph"."""

    model: nn.Module
    changes: tuple[Change, ...]
    forward: str = "module"


class UnsolvedError(RewriteError):
    """The module's integers cannot follow the plan; `equation` is the one that fails."""

    def __init__(self, message: str, equation: Equation) -> None:
        super().__init__(message)
        self.equation = equation


@takes(model=MODULE, graph=ChannelGraph, plan=Plan, forward=TEXT)
@torch.inference_mode(False)  # what is made there could not train
def rewrite(model: nn.Module, graph: ChannelGraph, plan: Plan, *, forward: str = "module") -> Rewritten:
    """Apply a plan to the model it was made for, or to another checkpoint of the same architecture; that one stays.

    Args:
        forward: "module" keeps the module's own forward and brings its integers along; "graph" makes the rewritten
            graph the forward, for modules whose Python cannot follow.

    Raises:
        PlanError: where plan, graph and model do not belong together.
        UnsolvedError: where the module's own forward cannot follow the plan; names the attribute.
    """
    graph = followed(graph, plan)
    keep = plan.kept(graph)
    belongs(model, graph)
    whole, graph = graph, graph.without(plan.blocks)
    try:
        attributes = _solve(graph, plan, keep) if forward == "module" else {}
    except Unsolved as e:
        raise UnsolvedError(f"the forward of {type(model).__name__} cannot follow the plan: {e}", e.equation) from e
    small = deep_copy(model, cut_tensors(model, graph, keep))
    small.__dict__.pop(FOLDED, None)  # of an earlier plan: the given model's weights hold these
    for fold in temperature_folds(graph, keep):
        fold.apply(small)
    changes = [c for attr, new in attributes.items() for c in set_attribute(small, attr, new)]
    changes += sync_layers(small)
    if plan.blocks:
        take_out(model, small, whole, plan.blocks, keep, run=forward == "module")
    if forward == "graph":
        use_graph(small, graph, plan, group_counts(graph, plan.norm_groups, keep))
    return Rewritten(small, tuple(changes), forward)


def transplant(model: nn.Module, small: nn.Module) -> nn.Module:
    """Give `model` and its modules the state of `small`, a pruned copy of it; other references to them stay valid."""
    for path, module in small.named_modules():
        if isinstance(module, Skip):
            put(model, path, module)
    own = dict(model.named_modules(remove_duplicate=False))
    for path, module in small.named_modules(remove_duplicate=False):
        target = own[path].__dict__
        keep = target["_modules"]
        target.clear()
        target.update(module.__dict__)
        target["_modules"] = keep
        if isinstance(forward := target.get("forward"), types.MethodType):
            target["forward"] = types.MethodType(forward.__func__, own[path])
    placed = {id(module): own[path] for path, module in small.named_modules(remove_duplicate=False)}
    for module in own.values():
        rebind(module, placed)
    return model


def belongs(model: nn.Module, graph: ChannelGraph) -> None:
    """Check that a model has the tensors that a graph was made of.

    Raises:
        PlanError: it has not.
    """
    named = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    for name, shape in graph.shapes.items():
        have = tuple(named[name].shape) if name in named else None
        if have != shape:
            raise PlanError(
                f"{type(model).__name__} has {name} of shape {have}, the plan's graph has {shape}: "
                "trace this model and plan again"
            )


# ---- integers ---------------------------------------------------------------------------------------------------


def _solve(graph: ChannelGraph, plan: Plan, keep: Bools) -> dict[Attr, int]:
    groups = group_counts(graph, plan.norm_groups, keep)

    def new_of(eq: Equation) -> int:
        return groups.get(eq.node, eq.old) if eq.groups else graph.kept(eq.axis, keep, eq.old)

    def kept(axis: Axis, old: int) -> int:
        return graph.kept(axis, keep, old)

    solved = solve(list(graph.equations), new_of, graph.axis_of, kept)
    return {attr: new for attr, new in solved.items() if new != attr.old}
