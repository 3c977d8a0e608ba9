"""A trace is kept while its module lives: on the same inputs, and where nothing has changed, it is not made again.

    asked anew      the module's structure, numbers and inputs are compared with those of the kept trace
    alike           the module runs once, recorded as it is for an export; its calls must be those of the kept trace
    else            the module is traced

An export takes about ten times as long as that run, which sees whatever a forward hangs on: methods, hooks, globals,
configs.  Not kept are traces that hold of one set of values (`Traced.noted`), of inputs or outputs that are told by
objects or functions, and of models whose train mode could not be seen.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune.graph.analysis import LIGHT, analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modes import Watch, differs
from fxprune.graph.modules import Inputs, evaluating, same_draws, training
from fxprune.graph.outputs import Outputs
from fxprune.graph.packing import Packed, copied
from fxprune.graph.provenance import Recorder, TracedInt, fields_of, holders_of
from fxprune.graph.quiet import quiet
from fxprune.graph.recording import Recorded, bypassed, traced_attributes
from fxprune.graph.rules.op import _RULES
from fxprune.graph.trace import Traced, work_of
from fxprune.graph.untouched import same_buffers, same_parameters, untouched

MODELS, EACH = 8, 2  # how many modules, the last used ones, have traces kept, and how many each
_PLAIN = (int, float, complex, str, type(None), torch.dtype, torch.device)


@dataclass(frozen=True)
class _Kept:
    structure: Hashable
    graph: ChannelGraph


_kept: OrderedDict[int, tuple[weakref.ref[nn.Module], dict[Hashable, _Kept]]] = OrderedDict()


def analysed(
    model: nn.Module, inputs: Inputs, prefer: tuple[str, ...] = ("heads", "head_dim"), returned: Outputs | None = None
) -> ChannelGraph:
    """What `analyse` gives, from a kept trace where that still holds."""
    returned = Outputs() if returned is None else returned
    asked, structure = _asked(inputs, prefer, returned), _structure(model)
    held = _of(model)
    found = held.get(asked) if asked is not None else None
    if found is not None and found.structure == structure and _holds(model, found.graph, inputs):
        return _renewed(found.graph, inputs)
    graph = analyse(model, inputs, prefer, returned)
    held.pop(asked, None)
    if asked is not None and not graph.unseen and not any(view.traced.noted for view in graph.modes):
        held[asked] = _Kept(structure, graph)
        for first in list(held)[:-EACH]:
            del held[first]
        return _renewed(graph, inputs)
    return graph


def forget() -> None:
    """Let all kept traces go."""
    _kept.clear()


def _of(model: nn.Module) -> dict[Hashable, _Kept]:
    """The kept traces of a module, which is the last used one from now on."""
    key = id(model)
    if key not in _kept or _kept[key][0]() is not model:
        _kept[key] = (weakref.ref(model, lambda gone: _drop(key, gone)), {})
    _kept.move_to_end(key)
    while len(_kept) > MODELS:
        _kept.popitem(last=False)
    return _kept[key][1]


def _drop(key: int, gone: weakref.ref[nn.Module]) -> None:
    if key in _kept and _kept[key][0] is gone:  # another module may have that address by now
        del _kept[key]


# ---- what is compared -----------------------------------------------------------------------------------------------


def _asked(inputs: Inputs, prefer: tuple[str, ...], returned: Outputs) -> Hashable | None:
    """What a trace is asked for; None: it holds objects, and cannot be compared."""
    leaves, spec = pytree.tree_flatten(inputs, is_leaf=lambda x: isinstance(x, Packed))
    told = [_told(x) for x in leaves]
    wanted = returned.wanted if isinstance(returned.wanted, (str, type(None))) else _told(returned.wanted)
    if None in told or (wanted is None and returned.wanted is not None):
        return None
    cast = tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda"))
    rules = tuple(_RULES.items())  # a plugin may bring some later
    return repr(spec), tuple(told), prefer, wanted, returned.released, cast, torch.get_default_dtype(), rules


def _told(x: Any) -> Hashable | None:
    """A value to compare; None where it is no plain one."""
    if isinstance(x, torch.Tensor):
        return ("tensor", tuple(x.shape), x.dtype, x.device, x.layout)
    if isinstance(x, _PLAIN):
        return type(x).__name__, repr(x)
    if type(x) in (tuple, list, set, frozenset, dict, OrderedDict, torch.Size):
        items = x.items() if isinstance(x, dict) else x
        told = tuple(_told(i) for i in items)
        return None if None in told else (type(x).__name__, told)
    return None


def _structure(model: nn.Module) -> Hashable:
    """Modules with their classes and plain attributes, and tensors with their shapes; tied ones have one number."""
    numbers: dict[int, int] = {}
    out: list[Hashable] = []
    for path, module in model.named_modules(remove_duplicate=False):
        held = [(k, v) for k, v in module.__dict__.items() if k != "training"]
        held += [
            (f"{name}.{k}", v) for name, holder in holders_of(module).items() for k, v in fields_of(holder).items()
        ]
        plain = tuple((k, told) for k, v in held if (told := _told(v)) is not None)
        out.append((path, type(module), plain))
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            number = numbers.setdefault(id(tensor), len(numbers))
            out.append((name, number, isinstance(tensor, nn.Parameter), _told(tensor)))
    return tuple(out)


# ---- the run that is compared ---------------------------------------------------------------------------------------


def _holds(model: nn.Module, graph: ChannelGraph, inputs: Inputs) -> bool:
    """Whether the module makes the calls that it was traced with, in train mode too where that was looked at."""
    light = work_of(graph.traced) < LIGHT
    watch = Watch()
    with watch():
        if not _same_calls(model, graph.traced, inputs, 0, light):
            return False
    try:
        if graph.training is None:
            return not differs(model, inputs, watch, light)
        given = graph.training.example if _shapes(graph.training.example) != _shapes(inputs) else inputs
        return _same_calls(model, graph.training, given, graph.traced.recorder.count, light)
    except Exception:  # noqa: BLE001 - it is traced anew, and what that meets is told
        return False


def _same_calls(model: nn.Module, traced: Traced, inputs: Inputs, first: int, light: bool) -> bool:
    """Whether a run in the trace's mode makes its calls; `first` is the number of the first one."""
    recorder = Recorder(count=first, strange=[], like=traced.recorder)
    recorded = Recorded(model, recorder, None, copy.copy(traced.returned))
    try:
        with (
            (training if traced.in_training else evaluating)(model),
            untouched(model),
            same_buffers(model),
            same_parameters(model),
            same_draws(),
            torch.no_grad(),
            _as_exported(),
            traced_attributes(model, recorder),
            bypassed(model, TracedInt),
        ):
            (_run if light else _fake_run)(recorded, copied(inputs))
    except Exception:  # noqa: BLE001 - it is traced anew, and what that meets is told
        return False
    finally:
        for tensor in (*model.parameters(), *model.buffers(), *(recorder.strange or ())):
            tensor.__dict__.pop("_fxprune_origin", None)
    constants = list(traced.constants.values())
    known = all(any(_equal(x, c) for c in constants) for x in recorder.strange or ())
    return known and recorder.same(traced.recorder)


def _run(recorded: nn.Module, inputs: Inputs) -> None:
    recorded(*inputs[0], **inputs[1])


def _fake_run(recorded: nn.Module, inputs: Inputs) -> None:
    """The same on tensors without values, which costs less where a forward is heavy."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    fake: Callable[[Any], Any] = lambda x: fakes.from_tensor(x) if isinstance(x, torch.Tensor) else x  # noqa: E731
    state = {n: fake(t) for n, t in (*recorded.named_parameters(), *recorded.named_buffers())}
    args, kwargs = pytree.tree_map(fake, inputs)
    with fakes:
        torch.func.functional_call(recorded, state, args, kwargs)


@contextlib.contextmanager
def _as_exported() -> Iterator[None]:
    """Within, what a model's Python may ask of torch is answered as during an export."""
    flags = "_is_compiling_flag", "_is_exporting_flag"
    was = [getattr(torch.compiler, flag) for flag in flags]
    try:
        with torch.backends.cudnn.flags(enabled=False), quiet():
            for flag in flags:
                setattr(torch.compiler, flag, True)
            yield
    finally:
        for flag, value in zip(flags, was, strict=True):
            setattr(torch.compiler, flag, value)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)


def _shapes(inputs: Inputs) -> list[Any]:
    return [x.shape if isinstance(x, torch.Tensor) else x for x in pytree.tree_leaves(inputs)]


def _renewed(graph: ChannelGraph, inputs: Inputs) -> ChannelGraph:
    """The graph, to be taken on these inputs: they have the shapes of those that it was traced on."""
    out = copy.copy(graph)
    out.__dict__.pop("modes", None)
    out.traced = replace(graph.traced, example=inputs)
    if graph.training is not None and _shapes(graph.training.example) == _shapes(inputs):
        out.training = replace(graph.training, example=inputs)
    return out
