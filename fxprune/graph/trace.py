"""From a module and example inputs to one flat torch.fx graph of ATen ops.

`torch.export.export(strict=False)` captures the model (pre-dispatch, so `conv2d`, `linear`, `group_norm` and
`scaled_dot_product_attention` stay whole); regions such as `no_grad` or autocast are inlined; integers keep their
provenance (see `fxprune.graph.provenance`).
"""

from __future__ import annotations

import contextlib
import math
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from fxprune.errors import InputsError, TraceError
from fxprune.graph.composite import expand
from fxprune.graph.modules import Inputs, evaluating, same_draws, tensor_names, training
from fxprune.graph.outputs import Outputs
from fxprune.graph.packing import called, copied
from fxprune.graph.provenance import Recorder, TracedInt
from fxprune.graph.quiet import quiet
from fxprune.graph.recording import MARK, Recorded, bypassed, traced_attributes
from fxprune.graph.regions import flat_graph
from fxprune.graph.turns import in_turn
from fxprune.graph.untouched import same_buffers, untouched
from fxprune.graph.values import Values

TRAINING = "training_"  # before the names of nodes of a graph in train mode


@dataclass(frozen=True)
class Traced:
    """A captured model.

    Attributes:
        graph: flat fx graph of ATen ops; placeholders first.
        tensors: placeholder name -> name of the parameter or buffer (canonical: tied names map to one).
        constants: placeholder name -> tensor that the model holds outside parameters and buffers.
        inputs: placeholder names of the user's inputs, in the order of the flattened `(args, kwargs)`.
        outputs: the nodes (or constants) that the model returns, flat.
        out_spec: how to rebuild the model's return value from the flat outputs.
        example: the example inputs, as `(args, kwargs)`.
        recorder: provenance of integers (empty where recording failed).
        calls: call number -> its nodes, in order.
        noted: values that the model's Python read are those of the example inputs: true of these alone.
        returned: which of the model's outputs count; calling it on a return value gives what `outputs` stand for.
        in_training: whether the model was in train mode.
    """

    graph: fx.Graph
    tensors: dict[str, str]
    constants: dict[str, torch.Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[Any, ...]
    out_spec: pytree.TreeSpec
    example: Inputs
    recorder: Recorder
    calls: dict[int, list[fx.Node]]
    noted: bool = False
    returned: Outputs = field(default_factory=Outputs)
    in_training: bool = False


class _Returning(nn.Module):
    """A model that returns only what counts."""

    def __init__(self, model: nn.Module, returned: Outputs) -> None:
        super().__init__()
        self.model = model
        self.__dict__["returned"] = returned

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__["returned"](called(self.model, (args, kwargs)))


def _export(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    with quiet(), same_draws():  # what Python draws becomes a constant: the one of every run that is compared
        return torch.export.export(model, inputs[0], inputs[1], strict=False)


def source_line(error: BaseException) -> str:
    """The last line of the user's own (or a model library's) source that an error passed through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename.replace("\\", "/")]
    frames = [f for f in frames if "fxprune/trace" not in f.filename and "fxprune/provenance" not in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "an unknown line"


def _advice(error: str) -> str:
    """What to type, by what torch.export stopped at."""
    causes = {
        "fake tensor in the exported program": "a tensor that the model makes from Python data while it runs was kept "
        "from an earlier run: make it in __init__, or pass it with example_inputs=",
        "not a known type": "pass example_inputs= made of tensors, numbers and containers of these, or register the "
        "class with torch.utils._pytree.register_pytree_node",
        "Unsupported input type": "pass example_inputs= made of tensors, numbers and containers of these, or register "
        "the class with torch.utils._pytree.register_pytree_node",
    }
    found = (advice for text, advice in causes.items() if text in error)
    data = (
        "rewrite that line without data-dependent Python, or prune the parts that can be captured: "
        "example_inputs=fxprune.parts(model, example_inputs)"
    )
    return next(found, data)


def _example_runs(model: nn.Module, inputs: Inputs) -> None:
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        return
    try:
        with torch.no_grad(), same_buffers(model):
            called(model, copied(inputs))
    except Exception as e:
        raise InputsError(
            f"the model does not run on the example inputs: {type(e).__name__}: {e} (at {source_line(e)}); "
            "pass example_inputs= that model(*args, **kwargs) accepts"
        ) from e


def capture(model: nn.Module, inputs: Inputs, returned: Outputs | None = None) -> Traced:
    """Export `model` in eval mode on `inputs`.

    Args:
        returned: which outputs count; None: all.

    Raises:
        TraceError: where `torch.export` cannot capture the model; names the source line it stopped at.
        InputsError: where the model itself does not run on these inputs, or has no such outputs.
    """
    with in_turn, evaluating(model), untouched(model), torch.no_grad():
        return _captured(model, inputs, Outputs() if returned is None else returned, _Numbers())


def capture_training(model: nn.Module, inputs: Inputs, traced: Traced) -> Traced:
    """Export `model` in train mode, too: names of nodes and numbers of calls are others than in `traced`.

    Raises:
        TraceError, InputsError: see `capture`.
    """
    numbers = _Numbers(traced.recorder.count, TRAINING)
    with in_turn, training(model), untouched(model), torch.no_grad():
        return replace(_captured(model, inputs, traced.returned.training(), numbers), in_training=True)


@dataclass(frozen=True)
class _Numbers:
    """The number of the first recorded call, and what stands before the names of nodes."""

    first: int = 0
    prefix: str = ""


def _captured(model: nn.Module, inputs: Inputs, returned: Outputs, numbers: _Numbers) -> Traced:
    def flatten(program: torch.export.ExportedProgram, recorder: Recorder) -> Traced:
        return replace(_flatten(model, program, inputs, recorder, numbers.prefix), returned=returned)

    try:
        return flatten(*_recorded(model, inputs, returned, numbers.first))
    except InputsError:
        raise
    except Exception:  # noqa: BLE001 - whatever recording met, plain export has the last word
        try:
            return flatten(_export(_Returning(model, returned), inputs), Recorder(count=numbers.first))
        except Exception as e:
            _example_runs(model, inputs)
            with contextlib.suppress(Exception):
                return replace(flatten(*_recorded(model, inputs, returned, numbers.first, Values())), noted=True)
            raise _stopped(model, e) from e


def _stopped(model: nn.Module, error: Exception) -> TraceError:
    first = (str(error).strip().splitlines() or [""])[0]
    return TraceError(
        f"torch.export cannot capture {type(model).__name__}: {type(error).__name__}: {first} "
        f"(stopped at {source_line(error)}); {_advice(str(error))}"
    )


def _recorded(
    model: nn.Module, inputs: Inputs, returned: Outputs, first: int, values: Values | None = None
) -> tuple[torch.export.ExportedProgram, Recorder]:
    """Export under a `Recorder`; with `values`, what Python reads from tensors is what it read in a run before."""
    recorder = Recorder(count=first)
    recorded = Recorded(model, recorder, values, returned)
    if values is not None:
        with same_draws(), same_buffers(model):
            recorded.noting(*inputs[0], **inputs[1])
    with traced_attributes(model, recorder), bypassed(model, TracedInt), fx_traceback.preserve_node_meta():
        return _export(recorded, inputs), recorder


_WRAPPED = "model."  # what is exported holds the model under this name


def _flatten(
    model: nn.Module, program: torch.export.ExportedProgram, inputs: Inputs, recorder: Recorder, prefix: str
) -> Traced:
    canonical = tensor_names(model)
    tensors: dict[str, str] = {}
    constants: dict[str, torch.Tensor] = {}
    users: list[str] = []
    for spec in program.graph_signature.input_specs:
        name, target = prefix + spec.arg.name, spec.target
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            own = str(target).removeprefix(_WRAPPED)
            tensors[name] = canonical.get(own, own)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[name] = program.constants[str(target)]
        elif spec.kind is InputKind.USER_INPUT:
            users.append(name)
    graph, outputs = flat_graph(program.graph_module, prefix)
    expand(graph)
    kinds = [s.kind for s in program.graph_signature.output_specs]
    outputs = tuple(o for o, k in zip(outputs, kinds, strict=True) if k is OutputKind.USER_OUTPUT)
    calls: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        node.meta.setdefault("custom", {})
        if (number := node.meta["custom"].get(MARK)) is not None:
            calls.setdefault(number, []).append(node)
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["fxprune_calls"] = _module_paths(stack, _WRAPPED)
        node.meta["fxprune_module"] = next(reversed(node.meta["fxprune_calls"]), "")
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    return Traced(graph, tensors, constants, tuple(users), outputs, out_spec, inputs, recorder, calls)


def _module_paths(stack: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    """Dotted paths of the modules whose calls a node was issued in, the innermost last."""
    paths = (str(path) for path, _ in stack.values())
    return tuple(p.removeprefix(prefix.rstrip(".")).removeprefix(".") if prefix else p for p in paths)


def mode_of(node: str, traced: Traced, trained: Traced | None) -> Traced:
    """The one of two traces that a node, by its name, is of."""
    return trained if trained is not None and node.startswith(TRAINING) else traced


def last_uses(graph: fx.Graph, outputs: tuple[Any, ...]) -> dict[fx.Node, tuple[fx.Node, ...]]:
    """Node -> values that nobody needs after it."""
    seen = {o for o in outputs if isinstance(o, fx.Node)}
    out: dict[fx.Node, tuple[fx.Node, ...]] = {}
    for node in reversed(graph.nodes):
        fresh = tuple(n for n in node.all_input_nodes if n not in seen)
        seen.update(fresh)
        if fresh:
            out[node] = fresh
    return out


def place_of(traced: Traced) -> tuple[torch.device, torch.dtype]:
    """The device of a model's weights, and the number type of most of them."""
    values = [n.meta["val"] for n in traced.graph.nodes if n.name in traced.tensors]
    weights = [v for v in values if v.is_floating_point()]
    sizes: dict[torch.dtype, int] = {}
    for v in weights:
        sizes[v.dtype] = sizes.get(v.dtype, 0) + v.numel()
    device = weights[0].device if weights else torch.device("cpu")
    return device, max(sizes, key=lambda t: sizes[t], default=torch.get_default_dtype())


def work_of(traced: Traced) -> float:
    """About how many multiplications a forward takes: those with a weight, and one an element of every value."""
    total = 0.0
    for node in traced.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.Tensor):
            shapes = (n.meta["val"].shape for n in node.all_input_nodes if n.name in traced.tensors)
            total += _numel(value.shape) * max((_numel(s[1:]) for s in shapes), default=1)
    return total


def _numel(shape: Any) -> int:
    """Elements, where sizes that depend on data count as one."""
    return math.prod(s if isinstance(s, int) else 1 for s in shape)
