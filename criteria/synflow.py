"""SynFlow: how much signal passes through a weight, without data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.errors import CriterionError
from fxprune.graph.rules.op import op_name
from fxprune.graph.trace import last_uses
from fxprune.scoring.context import Context

Linear: TypeAlias = Callable[[fx.Node, dict[str, Any]], Any]


@dataclass(frozen=True)
class SynFlow:
    """|θ| ∂R/∂|θ|, with R the sum of the outputs of the linearised network on an input of ones.

        R = 1ᵀ f(1; |θ|),   score(c) = Σ_{e ∈ E(c)} |θ_e| ∂R/∂|θ_e|

    In a chain of linear layers this is |θ| times all that comes before and all that comes after it, and what a channel
    takes in is what it gives out.  The traced graph is run with

        activation functions, dropout    the identity
        softmax, attention weights       uniform; queries and keys have no part in R
        norms                            x over its root mean square held fixed, times |γ|, plus |β|
        every other op                   itself, then the absolute value

    Held norms keep R in range; without any, R grows with depth (it is computed in double precision).  SynFlow is meant
    to be applied in many small steps: one shot of it can empty a layer, which the planner forbids.

    Needs neither data nor a loss: one pass on the example inputs' shapes.  Shape: a saliency of each tensor's own
    shape, ≥ 0, in the unit of R; groups in which nothing reaches R come last.
    Errors: CriterionError where R is not finite, or does not depend on the weights.
    Source: Tanaka et al., Pruning neural networks without any data by iteratively conserving synaptic flow, NeurIPS
    2020; the treatment of norms and attention is ours.

    >>> import torch
    >>> from fxprune.graph.analysis import analyse
    >>> from fxprune.scoring.score import score
    >>> net = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1, bias=False))
    >>> net.load_state_dict({"0.weight": torch.tensor([[3.0], [-1.0]]), "2.weight": torch.tensor([[1.0, -2.0]])})
    <All keys matched successfully>
    >>> graph = analyse(net, ((torch.zeros(1, 1),), {}))
    >>> score(graph, net, SynFlow()).values["0.weight:0"].tolist()  # |a b|, from either side
    [6.0, 4.0]
    """

    reduction: ClassVar[str] = "sum"
    partial: ClassVar[bool] = True

    def __call__(self, ctx: Context) -> dict[str, Tensor]:
        """Saliency of every tensor that R depends on."""
        weights = {n: w.detach().double().abs().requires_grad_() for n, w in ctx.tensors.items()}
        flows = [x.sum() for x in _outputs(ctx, weights) if isinstance(x, Tensor) and x.requires_grad]
        total = torch.stack(flows).sum() if flows else torch.zeros(())
        if not total.requires_grad or not bool(torch.isfinite(total)):
            raise CriterionError(
                f"{ctx.who}: the flow through this {ctx.graph.model_class} is {float(total.detach())}"
                f"{'' if flows else ' and depends on no weight'}; use another criterion"
            )
        found: tuple[Tensor | None, ...] = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        pairs = zip(weights.items(), found, strict=True)
        return {n: w.detach() * g for (n, w), g in pairs if g is not None}


def _outputs(ctx: Context, weights: dict[str, Tensor]) -> list[Any]:
    """The flat outputs of the linearised graph on ones."""
    traced = ctx.graph.traced
    state = {**dict(ctx.model.named_buffers()), **dict(ctx.model.named_parameters()), **weights}
    given = dict(zip(traced.inputs, pytree.tree_leaves(traced.example), strict=True))
    last = last_uses(traced.graph, traced.outputs)
    env: dict[fx.Node, Any] = {}
    for node in traced.graph.nodes:
        if node.op != "placeholder":
            env[node] = _step(node, env)
        elif node.name in traced.tensors:
            env[node] = _flow(state[traced.tensors[node.name]])
        else:
            env[node] = _flow(traced.constants[node.name]) if node.name in traced.constants else _ones(given[node.name])
        for n in last.get(node, ()):
            del env[n]
    return [env[o] if isinstance(o, fx.Node) else o for o in traced.outputs]


def _step(node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    if op_name(node.target).startswith("aten::_assert"):  # of the types that were traced, not those that run here
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
    linear = _LINEAR.get(op_name(node.target))
    if linear is not None:
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        return linear(node, {**dict(zip(names, args, strict=False)), **kwargs})
    return pytree.tree_map_only(Tensor, _flow, node.target(*args, **kwargs))  # type: ignore[operator]


def _flow(x: Tensor) -> Tensor:
    if x.is_complex():
        return x.to(torch.complex128)
    return x.double().abs() if x.is_floating_point() else x


def _ones(x: Any) -> Any:
    return torch.ones_like(x, dtype=torch.float64) if isinstance(x, Tensor) and x.is_floating_point() else x


def _identity(node: fx.Node, given: dict[str, Any]) -> Any:
    return given["self"] if "self" in given else given["input"]


def _uniform(node: fx.Node, given: dict[str, Any]) -> Tensor:
    x: Tensor = given["self"]
    return torch.full_like(x, 1 / x.shape[given["dim"]]).detach()


def _attention(node: fx.Node, given: dict[str, Any]) -> Tensor:
    """The mean of the values, for every query (of every head that shares them)."""
    q, v = given["query"], given["value"]
    mean: Tensor = v.mean(-2, keepdim=True)
    if q.dim() > 3 and q.shape[-3] != v.shape[-3]:
        mean = mean.repeat_interleave(q.shape[-3] // v.shape[-3], -3)
    return mean.expand(*mean.shape[:-2], q.shape[-2], -1)


def _norm(node: fx.Node, given: dict[str, Any]) -> Tensor:
    x: Tensor = given["input"]
    y = x / x.detach().square().mean().sqrt().clamp_min(torch.finfo(x.dtype).tiny)
    last = "normalized_shape" in given
    for name in ("weight", "bias"):
        if (p := given.get(name)) is not None:
            p = p if last else p.reshape(-1, *[1] * (x.dim() - 2))
            y = y * p if name == "weight" else y + p
    return y


_ACTIVATIONS = [
    "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardsigmoid",
    "hardtanh", "sigmoid", "tanh", "softplus", "log_sigmoid", "dropout", "feature_dropout", "alpha_dropout",
]  # fmt: skip
_LINEAR: dict[str, Linear] = {
    **{f"aten::{n}": _identity for n in _ACTIVATIONS},
    **{f"aten::{n}": _uniform for n in ["softmax", "log_softmax", "_softmax"]},
    **{f"aten::{n}": _norm for n in ["batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"]},
    "aten::scaled_dot_product_attention": _attention,
}
