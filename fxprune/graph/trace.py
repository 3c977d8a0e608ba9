"""From a module and example inputs to one flat torch.fx graph of ATen ops.

`torch.export.export(strict=False)` captures the model (pre-dispatch, so `conv2d`, `linear`, `group_norm` and
`scaled_dot_product_attention` stay whole); regions such as `no_grad` or autocast are inlined; integers keep their
provenance (see `fxprune.graph.provenance`).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from fxprune.errors import InputsError, TraceError
from fxprune.graph.modules import Inputs, evaluating, same_draws, tensor_names
from fxprune.graph.provenance import Recorder, TracedInt
from fxprune.graph.recording import MARK, Recorded, bypassed, traced_attributes
from fxprune.graph.turns import in_turn
from fxprune.graph.values import Values

_STATE = ("_parameters", "_buffers", "_modules")


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


def _holders(model: nn.Module) -> Iterator[dict[str, Any]]:
    """The attributes of every module, and of plain objects that modules hold (a table of positions, say)."""
    for m in model.modules():
        yield m.__dict__
        for v in list(m.__dict__.values()):
            if (
                hasattr(v, "__dict__")
                and not isinstance(v, (nn.Module, torch.Tensor, type))
                and not inspect.isroutine(v)
            ):
                yield v.__dict__


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Afterwards every module has the attributes and hooks it had: what the forward keeps of fake tensors is let go."""
    was = [(held, dict(held)) for held in _holders(model)]
    kinds = (dict, list, OrderedDict)
    kept = [v for _, before in was for k, v in before.items() if type(v) in kinds and k not in _STATE]
    caches = [(v, copy.copy(v)) for v in kept]
    try:
        yield
    finally:
        for held, before in was:
            held.clear()
            held.update(before)
        for cache, content in caches:
            cache.clear()
            (cache.update if isinstance(cache, dict) else cache.extend)(content)
        for clear in _memories(model):
            clear()


def _memories(model: nn.Module) -> set[Callable[[], None]]:
    """How to empty what `functools.lru_cache` remembers of the methods of the model's classes."""
    classes = {c for m in model.modules() for c in type(m).__mro__ if not c.__module__.startswith("torch.")}
    cached = (v for c in classes for v in vars(c).values() if hasattr(v, "cache_clear") and hasattr(v, "cache_info"))
    return {v.cache_clear for v in cached}


def _export(model: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, inputs[0], inputs[1], strict=False)


def _source_line(error: BaseException) -> str:
    """The last line of the user's own (or a model library's) source that an error passed through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename.replace("\\", "/")]
    frames = [f for f in frames if "fxprune/trace" not in f.filename and "fxprune/provenance" not in f.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "an unknown line"


def _example_runs(model: nn.Module, inputs: Inputs) -> None:
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        return
    try:
        with torch.no_grad():
            model(*inputs[0], **inputs[1])
    except Exception as e:
        raise InputsError(
            f"the model does not run on the example inputs: {type(e).__name__}: {e} (at {_source_line(e)}); "
            "pass example_inputs= that model(*args, **kwargs) accepts"
        ) from e


def capture(model: nn.Module, inputs: Inputs) -> Traced:
    """Export `model` in eval mode on `inputs`.

    Raises:
        TraceError: where `torch.export` cannot capture the model; names the source line it stopped at.
        InputsError: where the model itself does not run on these inputs.
    """
    with in_turn, evaluating(model), _untouched(model):
        try:
            return _flatten(model, *_recorded(model, inputs))
        except Exception:  # noqa: BLE001 - whatever recording met, plain export has the last word
            try:
                return _flatten(model, _export(model, inputs), inputs, Recorder(), "")
            except Exception as e:
                _example_runs(model, inputs)
                with contextlib.suppress(Exception):
                    return replace(_flatten(model, *_recorded(model, inputs, Values())), noted=True)
                first = (str(e).strip().splitlines() or [""])[0]
                raise TraceError(
                    f"torch.export cannot capture {type(model).__name__}: {type(e).__name__}: {first} "
                    f"(stopped at {_source_line(e)}); rewrite that line without data-dependent Python, or prune the "
                    "part of the model that can be captured"
                ) from e


def _recorded(
    model: nn.Module, inputs: Inputs, values: Values | None = None
) -> tuple[torch.export.ExportedProgram, Inputs, Recorder, str]:
    """Export under a `Recorder`; with `values`, what Python reads from tensors is what it read in a run before."""
    recorder = Recorder()
    recorded = Recorded(model, recorder, values)
    if values is not None:
        with same_draws():
            recorded.noting(*inputs[0], **inputs[1])
    with traced_attributes(model, recorder), bypassed(model, TracedInt), fx_traceback.preserve_node_meta():
        return _export(recorded, inputs), inputs, recorder, "model."


def _flatten(
    model: nn.Module, program: torch.export.ExportedProgram, inputs: Inputs, recorder: Recorder, prefix: str
) -> Traced:
    canonical = tensor_names(model)
    tensors: dict[str, str] = {}
    constants: dict[str, torch.Tensor] = {}
    users: list[str] = []
    for spec in program.graph_signature.input_specs:
        name, target = spec.arg.name, spec.target
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            own = str(target).removeprefix(prefix)
            tensors[name] = canonical.get(own, own)
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            constants[name] = program.constants[str(target)]
        elif spec.kind is InputKind.USER_INPUT:
            users.append(name)
    graph, outputs = _inline(program.graph_module)
    kinds = [s.kind for s in program.graph_signature.output_specs]
    outputs = tuple(o for o, k in zip(outputs, kinds, strict=True) if k is OutputKind.USER_OUTPUT)
    calls: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        node.meta.setdefault("custom", {})
        if (number := node.meta["custom"].get(MARK)) is not None:
            calls.setdefault(number, []).append(node)
        stack = node.meta.get("nn_module_stack") or {}
        node.meta["fxprune_calls"] = _module_paths(stack, prefix)
        node.meta["fxprune_module"] = next(reversed(node.meta["fxprune_calls"]), "")
    out_spec = program.call_spec.out_spec
    assert out_spec is not None
    return Traced(graph, tensors, constants, tuple(users), outputs, out_spec, inputs, recorder, calls)


def _module_paths(stack: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    """Dotted paths of the modules whose calls a node was issued in, the innermost last."""
    paths = (str(path) for path, _ in stack.values())
    return tuple(p.removeprefix(prefix.rstrip(".")).removeprefix(".") if prefix else p for p in paths)


def _inline(module: fx.GraphModule) -> tuple[fx.Graph, tuple[Any, ...]]:
    """A copy of the graph with higher-order regions (no_grad, autocast) inlined, and its outputs.

    The copy has no output node: the outputs are returned beside it.
    """
    graph = fx.Graph()
    outputs = _copy_into(graph, module, None)
    return graph, tuple(outputs)


def _region(module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, tuple[Any, ...]] | None:
    """The submodule that a wrap_with_* op calls, with its arguments."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return None
    if not node.target._name.startswith("wrap_with_") and node.target._name not in ("wrap",):
        return None
    for k, a in enumerate(node.args):
        if isinstance(a, fx.Node) and a.op == "get_attr":
            inner = module.get_submodule(str(a.target))
            if isinstance(inner, fx.GraphModule):
                return inner, node.args[k + 1 :]
    return None


def _copy_into(graph: fx.Graph, module: fx.GraphModule, args: tuple[Any, ...] | None) -> list[Any]:
    env: dict[fx.Node, Any] = {}
    given = iter(args or ())

    def look(a: Any) -> Any:
        return fx.node.map_arg(a, lambda n: env[n])

    for node in module.graph.nodes:
        if node.op == "placeholder" and args is not None:
            env[node] = next(given)
        elif node.op == "output":
            out = look(node.args[0])
            return list(out) if isinstance(out, (tuple, list)) else [out]
        elif node.op == "get_attr" and isinstance(_attribute(module, str(node.target)), nn.Module):
            env[node] = None
        elif (region := _region(module, node)) is not None:
            env[node] = tuple(_copy_into(graph, region[0], look(region[1])))
        elif node.target is operator.getitem and not isinstance(env.get(node.args[0]), fx.Node):
            env[node] = env[node.args[0]][node.args[1]]
        elif node.op == "get_attr":
            raise TraceError(f"the captured graph holds the constant {node.target}, which fxprune cannot place")
        else:
            env[node] = graph.node_copy(node, lambda n: env[n])
    raise AssertionError("a graph without an output")


def _attribute(module: nn.Module, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module


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
