"""Parts of a model that `torch.export` cannot capture whole, such as a detector: traced side by side on their inputs.

The whole runs once on the caller's inputs, and what each part is given is recorded.  These inputs stand for the whole's
wherever example inputs are asked for: the trace, the masks and the proofs run the parts, while names, tensors, losses
and the result are those of the whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.arguments import MODULE, takes
from fxprune.errors import FxPruneError, InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.explain import meant
from fxprune.graph.modules import ExampleInputs, Inputs, as_inputs, evaluating, require_whole, same_draws
from fxprune.graph.offloading import at_rest
from fxprune.graph.outputs import shortened
from fxprune.graph.packing import PARTS, copied, packed, unpacked
from fxprune.graph.recording import open_functional
from fxprune.graph.trace import source_line
from fxprune.graph.turns import in_turn
from fxprune.graph.untouched import same_buffers, untouched


class Parts(dict[str, Any]):
    """What the parts of a model are given, to be passed as `example_inputs=`; made by `fxprune.parts`."""

    @property
    def names(self) -> tuple[str, ...]:
        """The modules that are traced; all else of the model stays as it is."""
        return tuple(self[PARTS])

    def __repr__(self) -> str:
        return f"Parts({', '.join(self.names)})"


class _Run(TorchFunctionMode):
    """One run of the whole model: what each part is given first, and who reads a part's tensors from outside."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.parts = {name: model.get_submodule(name) for name in names}
        self.owner = {id(t): name for name, m in self.parts.items() for t in [*m.parameters(), *m.buffers()]}
        self.given: dict[str, Inputs] = {}
        self.read: dict[str, str] = {}
        self.inside: list[str] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name != "__get__":
            for x in pytree.tree_leaves((args, kwargs)):
                owner = self.owner.get(id(x))
                if owner is not None and owner not in self.inside:
                    self.read.setdefault(owner, name)
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        handles = []
        for name, part in self.parts.items():
            handles.append(part.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(part.register_forward_hook(self._leave, always_call=True))
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inside.append(name)
            if name not in self.given:
                self.given[name] = copied(packed((args, kwargs)))

        return enter

    def _leave(self, *_: Any) -> None:
        self.inside.pop()


@takes(model=MODULE)
def parts(model: nn.Module, example_inputs: ExampleInputs, names: str | Sequence[str] | None = None) -> Parts:
    """Example inputs for a model that `torch.export` cannot capture whole, but in parts, such as a detector.

    The model runs once, in eval mode, and what its parts are given is recorded. Everything that takes `example_inputs`
    takes the result: the parts are traced, pruned and proven, each with its own inputs and outputs (which keep their
    width), and what comes back is the whole model. A loss is of the whole: `loss(model, batch)` on its own data.

    Args:
        model: the whole; it is left as it is.
        example_inputs: of the whole; see `trace`.
        names: the parts, as in `model.get_submodule`; None: the largest that can be captured and pruned, which are
            looked for from the outside inwards. A part that is called several times is traced on what it gets first.

    Raises:
        InputsError: the model does not run on these inputs, there is no such part, it is not called, a module outside
            of it reads its weights, or no part can be pruned.

    >>> import torch, fxprune
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    ...     def forward(self, x):
    ...         boxes = [row for row in self.body(x) if row.sum() > 0]
    ...         return torch.stack(boxes) if boxes else x[:0]
    >>> net, x = Net(), torch.randn(4, 8)
    >>> found = fxprune.parts(net, x)
    >>> found
    Parts(body)
    >>> fxprune.prune(net, "magnitude", 0.5, example_inputs=found, progress=False).body[0].out_features
    16
    """
    require_whole(model)
    inputs = as_inputs(example_inputs)
    if PARTS in inputs[1]:
        raise InputsError(f"example_inputs={example_inputs!r:.60} are of parts already; pass what the whole takes")
    with in_turn, torch.inference_mode(False), at_rest(model):
        wanted = None if names is None else _wanted(model, names)
        if wanted is not None:
            return Parts({PARTS: _recorded(model, inputs, wanted, strict=True)})
        found = dict(_found(model, inputs, [n for n, _ in model.named_children()]))
    if not found:
        raise InputsError(
            f"no part of this {type(model).__name__} can be captured and pruned: name those that you mean with names=, "
            "and the error says what is in the way"
        )
    return Parts({PARTS: found})


def _wanted(model: nn.Module, names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of modules that a caller gave, checked."""
    given = (names,) if isinstance(names, str) else names
    known = [n for n, _ in model.named_modules(remove_duplicate=False) if n]
    if not isinstance(given, (list, tuple)) or not given or not all(isinstance(n, str) for n in given):
        raise InputsError(f"names={names!r:.60} must be names of modules, at least one, or None")
    if (unknown := next((n for n in given if n not in known), None)) is not None:
        raise InputsError(f"names= has {unknown!r}, which is no module within the model{meant(unknown, known)}")
    if nested := next(((a, b) for a in given for b in given if a != b and b.startswith(f"{a}.")), None):
        raise InputsError(f"names= has {nested[1]!r}, which is within {nested[0]!r}: name one of the two")
    return tuple(dict.fromkeys(given))


def _recorded(model: nn.Module, inputs: Inputs, names: Sequence[str], strict: bool) -> dict[str, Inputs]:
    """What parts are given when the whole runs: those that are called, and whose tensors nobody reads from outside.

    Raises:
        InputsError: the whole does not run; with `strict`, also where a part is left out.
    """
    run = _Run(model, names)
    try:
        with torch.no_grad(), evaluating(model), untouched(model), same_buffers(model), same_draws(), open_functional():
            args, kwargs = unpacked(copied(packed(inputs)))
            with run():
                model(*args, **kwargs)
    except Exception as e:
        raise InputsError(
            f"the model does not run on example_inputs: {type(e).__name__}: {e} (at {source_line(e)}); pass what "
            "model(*args, **kwargs) accepts"
        ) from e
    if strict and (read := next(iter(run.read.items()), None)) is not None:
        raise InputsError(f"names= has {read[0]!r}, whose tensors {read[1]} reads outside of it: name a larger part")
    if strict and (idle := next((n for n in names if n not in run.given), None)) is not None:
        raise InputsError(
            f"names= has {idle!r}, which is not called on example_inputs; called are parts such as "
            f"{shortened([n for n in names if n in run.given]) or 'none of these'}"
        )
    return {n: run.given[n] for n in names if n in run.given and n not in run.read}


def _found(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> Iterator[tuple[str, Inputs]]:
    """The largest parts among modules, and within these, that can be captured and pruned."""
    rich = [n for n in names if sum(bool(m._parameters) for m in model.get_submodule(n).modules()) > 1]
    if not rich:
        return
    given = _recorded(model, inputs, rich, strict=False)
    for name in rich:
        if name in given and _prunable(model.get_submodule(name), given[name]):
            yield name, given[name]
        else:
            yield from _found(model, inputs, [f"{name}.{n}" for n, _ in model.get_submodule(name).named_children()])


def _prunable(part: nn.Module, inputs: Inputs) -> bool:
    """Whether a part can be captured, and has channels that may go."""
    try:
        return bool(analyse(part, inputs).groups)
    except FxPruneError:
        return False
