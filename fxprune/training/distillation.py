"""Knowledge distillation from the dense model, while the masks move and after the hand-off.

    L = L_task + output · D(z, z_T) + features · mean over layers of  Σ m (f − f_T)² / Σ m f_T²

z are the outputs of the model and f those of inner modules; T marks the dense model on the very same inputs, whatever
the loss made of its batch.  D is the mean squared error, or T² KL(softmax(z_T / T) ‖ softmax(z / T)).  A feature counts
as much as its mask m: one that nothing reads may become what it will, and after the hand-off, where it is gone, the
term is what it was before.

Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Romero et al., FitNets, ICLR 2015.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.arguments import NUMBER, POSITIVE, SEVERAL, TEXT, require_fields
from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.masking.sites import module_runs
from fxprune.scoring.autograd import softmax_axes

KINDS = ("auto", "mse", "kl")
Axes = tuple[tuple[int, Ints], ...]


@dataclass(frozen=True)
class Distillation:
    """What the small model learns from the dense one.

    Attributes:
        output: weight of the outputs' term.
        features: weight of the features' term.
        layers: modules whose outputs are features; none: the outermost elements of `nn.ModuleList` and
            `nn.Sequential` that give one tensor.
        kind: "mse", "kl" (over the last axis), or "auto": KL for what the model calls `logits`, and for outputs whose
            log-softmax the loss takes (as cross entropy does), over that axis; else MSE.
        temperature: T.
    """

    output: float = 1.0
    features: float = 0.0
    layers: tuple[str, ...] = ()
    kind: str = "auto"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        layers = SEVERAL.raising(InputsError)
        require_fields(self, output=NUMBER, features=NUMBER, layers=layers, kind=TEXT, temperature=POSITIVE)
        if self.kind not in KINDS:
            raise InputsError(f"kind={self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        for name in ("output", "features"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputsError(f"{name}={getattr(self, name)} is a weight: pass a finite number, not below 0")
        if not 0 < self.temperature < math.inf:
            raise InputsError(f"temperature={self.temperature} must be finite and above 0")


@dataclass
class _Call:
    """One call of a model: what it was given, what it gave, and features by layer."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    features: dict[str, Tensor]


class Teacher:
    """The dense model as it was at the start, in eval mode.

    Args:
        model: the dense model, which is taken over and frozen.
        graph: its channels; only features need them.
        options: what to learn from it.
        required: raise where the loss or the model leaves nothing to learn from; otherwise warn, and go on without.

    Raises:
        InputsError: a layer is unknown or gives no single tensor; or none is found; or features without a graph.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph | None, options: Distillation, required: bool = True
    ) -> None:
        self.options, self.required, self.idle = options, required, False
        self.model = model.eval().requires_grad_(False)
        self.sites: dict[str, Axes] = _chosen(model, graph, options.layers) if options.features else {}
        self.mask: Tensor | None = None
        self.keep: npt.NDArray[Any] | None = None

    def follow(self, mask: npt.NDArray[Any]) -> None:
        """Take new masks, one number for every component of the graph; frozen ones (0) count as one."""
        if self.sites:
            self.mask = torch.from_numpy(mask).float()
            self.mask[0] = 1.0

    def cut(self, keep: npt.NDArray[Any]) -> None:
        """The student has lost its channels: compare with what the teacher has of the others."""
        self.mask, self.keep = None, keep

    def loss(self, student: nn.Module, task: Callable[[], Tensor]) -> Tensor:
        """What `task` returns, with the terms of distillation for every call of the student in it."""
        if self.idle:
            return task()
        with self._watched(student) as calls:
            value = task()
        try:
            if not calls:
                raise InputsError(
                    f"the loss does not call the {type(student).__name__} itself, so that its outputs cannot be "
                    "compared with the dense model's; call model(...) in the loss, or pass distill=None"
                )
            return value + sum((self._term(call, value) for call in calls), torch.zeros_like(value))
        except InputsError as e:
            if self.required:
                raise
            self.idle = True
            warnings.warn(f"this run trains without the dense model's outputs: {e}", stacklevel=2)
            return value

    def _term(self, call: _Call, value: Tensor) -> Tensor:
        with torch.no_grad(), self._watched(self.model) as seen:
            self.model(*call.args, **call.kwargs)
        (teacher,) = seen
        total = self.options.output * self._outputs(call.out, teacher.out, value)
        if self.sites:
            each = [self._feature(n, call.features[n], teacher.features[n]) for n in self.sites]
            total = total + self.options.features * torch.stack(each).mean()
        return total

    def _outputs(self, student: Any, teacher: Any, value: Tensor) -> Tensor:
        kind, t = self.options.kind, self.options.temperature
        logits = getattr(student, "logits", None)
        if kind != "mse" and isinstance(logits, Tensor):
            return _divergence(logits, teacher.logits, t)
        ours, theirs = pytree.tree_leaves(student), pytree.tree_leaves(teacher)
        if list(map(_shape, ours)) != list(map(_shape, theirs)):
            raise InputsError(
                "the model's outputs in training are not of the structure and shapes of the dense model's in eval mode"
            )
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if _is_float(a)]
        if not pairs:
            raise InputsError("the model gives no floating-point tensor, so there is no output to learn from")
        axes = (
            softmax_axes(value, [a for a, _ in pairs])
            if kind == "auto"
            else [-1 if kind == "kl" else None] * len(pairs)
        )
        terms = [_error(*p) if axis is None else _divergence(*p, t, axis) for p, axis in zip(pairs, axes, strict=True)]
        return torch.stack(terms).sum()

    def _feature(self, name: str, student: Tensor, teacher: Tensor) -> Tensor:
        weight = torch.ones((), device=teacher.device)
        for axis, components in self.sites[name]:
            shape = [1] * teacher.dim()
            shape[axis] = -1
            if self.keep is not None:
                kept = torch.from_numpy(self.keep[components].nonzero()[0])
                teacher = teacher.index_select(axis, kept.to(teacher.device))
            elif self.mask is not None:
                weight = weight * self.mask[torch.from_numpy(components)].to(teacher.device).view(shape)
        error, size = (student.float() - teacher.float()).square(), teacher.float().square()
        return (weight * error).sum() / (weight * size).sum().clamp_min(torch.finfo(torch.float32).tiny)

    @contextlib.contextmanager
    def _watched(self, model: nn.Module) -> Iterator[list[_Call]]:
        """Within, every call of the model is written down."""
        calls: list[_Call] = []
        now: dict[str, Tensor] = {}

        def called(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            calls.append(_Call(args, kwargs, out, dict(now)))
            now.clear()

        def keeping(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
            return lambda _module, _args, out: now.__setitem__(name, out)

        with contextlib.ExitStack() as stack:
            for name in self.sites:
                handle = model.get_submodule(name).register_forward_hook(keeping(name))
                stack.callback(handle.remove)
            stack.callback(model.register_forward_hook(called, with_kwargs=True).remove)
            yield calls


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _divergence(student: Tensor, teacher: Tensor, t: float, axis: int = -1) -> Tensor:
    a, b = (F.log_softmax(z.float().movedim(axis, -1) / t, -1).flatten(0, -2) for z in (student, teacher))
    return F.kl_div(a, b, reduction="batchmean", log_target=True) * t * t


def _error(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student.float(), teacher.float())


# ---- where features are -------------------------------------------------------------------------------------------


def _chosen(model: nn.Module, graph: ChannelGraph | None, layers: tuple[str, ...]) -> dict[str, Axes]:
    if graph is None:
        raise InputsError("features= knows one cut only, and attention='both' makes two; prune heads, or head_dim")
    sites = feature_sites(graph)
    names = layers or tuple(_blocks(model, sites, ""))
    if not names:
        raise InputsError(
            f"no element of a ModuleList or Sequential in this {type(model).__name__} gives one tensor; name modules "
            "with Distillation(layers=...)"
        )
    known = dict(model.named_modules())
    for name in names:
        if name not in sites:
            why = "runs more than once, or gives something else than one tensor" if name in known else "is not there"
            raise InputsError(f"the layer {name!r} of this {type(model).__name__} {why}; name another one")
    return {name: sites[name] for name in names}


def _blocks(model: nn.Module, sites: Mapping[str, Axes], path: str) -> Iterator[str]:
    listed = isinstance(model, (nn.ModuleList, nn.Sequential))
    for name, child in model.named_children():
        full = f"{path}.{name}" if path else name
        if listed and full in sites:
            yield full
        else:
            yield from _blocks(child, sites, full)


def feature_sites(graph: ChannelGraph) -> dict[str, Axes]:
    """Modules that run once and give one floating-point tensor, with the live axes of it and their components."""
    inside: dict[str, set[fx.Node]] = defaultdict(set)
    runs: dict[str, set[str]] = defaultdict(set)
    for node in graph.traced.graph.nodes:
        for path, run in module_runs(node):
            inside[path].add(node)
            runs[path].add(run)
    ends = {o for o in graph.traced.outputs if isinstance(o, fx.Node)}
    out: dict[str, Axes] = {}
    for path, nodes in inside.items():
        given = [n for n in nodes if n in ends or any(user not in nodes for user in n.users)]
        value = given[0].meta.get("val") if len(given) == 1 else None
        if path and len(runs[path]) == 1 and isinstance(value, Tensor) and value.is_floating_point():
            labels = graph.env[given[0]]
            axes = [(d, graph.component[a]) for d, a in enumerate(labels) if a is not None]
            out[path] = tuple((d, c) for d, c in axes if c.any())
    return out
