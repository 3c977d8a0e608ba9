"""Masks on the user's own module, while it trains.

`LiveMasks(model, graph)` makes the module read its channels through a mask: weights come out of their modules
multiplied along the axis that they read, norms take mask-weighted statistics, calls without a weight mask an argument.
With ones everywhere nothing is multiplied and the fused kernels run: outputs and gradients are the very same bits.

Names, parameters, `state_dict`, hooks and optimizers of the model stay as they are: only the classes of the modules
concerned are exchanged for subclasses, and `detach()` puts them back.  It works in train mode, under autocast, gradient
checkpointing, DDP, `fully_shard` (FSDP2) and `torch.compile`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import require_whole, sharded
from fxprune.graph.packing import copied
from fxprune.graph.untouched import same_buffers, same_parameters
from fxprune.masking.comparison import counted, relative_error, tolerance
from fxprune.masking.interception import KEY, HeldSites, MaskedAxis, MaskedCall, Site, Switch, masked_class
from fxprune.masking.masked_run import run_masked
from fxprune.masking.settled import Settled
from fxprune.masking.sites import CallSite, WeightSite, call_sites, weight_sites
from fxprune.scoring.entire import entire


class LiveMasks:
    """The masks of a model's channels, on the model itself.

    Args:
        model: the traced model.
        graph: its channels.
        check: prove on the example inputs that random masks do here what they do on the graph; groups for which they
            do not are put into `held` and stay at one.  Of a sharded model that is tried on a whole copy.

    Attributes:
        held: names of the groups that cannot be masked in this model's own Python.

    Raises:
        InputsError: the model carries masks already, or its parameters are split over devices in another way than by
            `fully_shard`.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, check: bool = True) -> None:
        _refuse(model)
        self.model, self.graph = model, graph
        apart = check and sharded(model)
        self.held: frozenset[str] = frozenset()
        if apart:
            with entire(model) as net:
                self.held = LiveMasks(net, graph).held
        self.switch = Switch()
        self._attached: list[tuple[nn.Module, type[nn.Module]]] = []
        self._install(weight_sites(graph, model), call_sites(graph))
        self.set(np.ones(int(graph.component.max()) + 1))
        if check and not apart:
            self.held = self._unfaithful(graph.groups)

    # ---- values -------------------------------------------------------------------------------------------------

    def set(self, mask: npt.NDArray[Any]) -> None:
        """Take new masks: one number in [0, 1] for every component of the graph; frozen ones (0) count as one."""
        mask = self._given = np.asarray(mask, np.float32).copy()
        mask[0] = 1.0
        for name in self.held:
            mask[self.graph.group(name).components] = 1.0
        flat = mask[self._index]
        least = np.minimum.reduceat(flat, self._starts) if len(flat) else flat
        most = np.maximum.reduceat(flat, self._starts) if len(flat) else flat
        with torch.no_grad():
            for values in self._buffers.values():
                values.copy_(torch.from_numpy(flat))
        for axis, low, high in zip(self._axes, least, most, strict=True):
            axis.full = bool(low == high == 1.0)
        self.switch.neutral = bool((flat == 1.0).all())

    @contextlib.contextmanager
    def straight_through(self) -> Iterator[None]:
        """Within, gradients reach masked weights unscaled, so that a criterion sees what a masked channel would do."""
        self.switch.straight_through = True
        try:
            yield
        finally:
            self.switch.straight_through = False

    def detach(self) -> None:
        """Take every mask off; nothing of them is left on the model."""
        for module, cls in self._attached:
            module.__class__ = cls
            del module.__dict__[KEY]
        self._attached.clear()

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Within, the model is as `detach()` leaves it."""
        held = [(module, type(module), module.__dict__.pop(KEY)) for module, _ in self._attached]
        for module, cls in self._attached:
            module.__class__ = cls
        try:
            yield
        finally:
            for module, masked, sites in held:
                module.__class__, module.__dict__[KEY] = masked, sites

    @contextlib.contextmanager
    def copied(self) -> Iterator[LiveMasks]:
        """Within, the same masks on a whole copy of a sharded model."""
        with contextlib.ExitStack() as stack:
            with self.off():
                net = stack.enter_context(entire(self.model))
            masks = LiveMasks(net, self.graph, check=False)
            masks.held = self.held
            masks.set(self._given)
            yield masks

    # ---- installation -------------------------------------------------------------------------------------------

    def _install(self, weights: list[WeightSite], calls: list[CallSite]) -> None:
        pieces = [w.components for w in weights] + [c for call in calls for _, c in call.axes]
        self._index = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        self._starts = np.cumsum([0] + [len(p) for p in pieces])[:-1]
        self._buffers: dict[torch.device, Tensor] = {}
        self._axes: list[MaskedAxis] = []
        modules = dict(self.model.named_modules())
        held: dict[str, HeldSites] = {}
        starts = iter(self._starts.tolist())
        for w in weights:
            tensor = getattr(modules[w.path], w.tensor)
            axis = self._axis(w.axis, next(starts), len(w.components), tensor.device)
            site = held.setdefault(w.path, HeldSites()).weights.setdefault(w.tensor, Site([], self.switch))
            site.axes.append(axis)
        device = next(iter(self.model.parameters())).device
        for c in calls:
            axes = [self._axis(d, next(starts), len(a), device) for d, a in c.axes]
            made = MaskedCall(axes, self.switch, c)
            held.setdefault(c.path, HeldSites()).calls.setdefault((c.family, c.ordinal), []).append(made)
        for path, what in held.items():
            module = modules[path]
            self._attached.append((module, type(module)))
            module.__dict__[KEY] = what
            module.__class__ = masked_class(type(module), tuple(sorted(what.weights)), bool(what.calls))  # type: ignore[arg-type]

    def _axis(self, dim: int, start: int, size: int, device: torch.device) -> MaskedAxis:
        if device not in self._buffers:
            self._buffers[device] = torch.ones(len(self._index), device=device)
        self._axes.append(MaskedAxis(dim, self._buffers[device][start : start + size]))
        return self._axes[-1]

    # ---- proof --------------------------------------------------------------------------------------------------

    def _unfaithful(self, groups: tuple[Any, ...]) -> frozenset[str]:
        """Groups whose masks do not do here what they do on the graph, by bisection."""
        if not groups or self._faithful(groups):
            return frozenset()
        if len(groups) == 1:
            return frozenset({groups[0].name})
        half = len(groups) // 2
        return self._unfaithful(groups[:half]) | self._unfaithful(groups[half:])

    def _faithful(self, groups: tuple[Any, ...]) -> bool:
        rng = np.random.default_rng(0)
        keep = self.graph.keep_all()
        for g in groups:
            keep[g.components] = rng.random(len(g)) < 0.5
        return all(self._follows(view, keep) for view in self.graph.modes)

    def _follows(self, view: ChannelGraph, keep: npt.NDArray[Any]) -> bool:
        """Whether the masks do here what they do on one of the graphs."""
        traced = view.traced
        with (
            Settled() if traced.in_training else contextlib.nullcontext(),
            same_buffers(self.model),
            same_parameters(self.model),
        ):
            want = run_masked(view, self.model, copied(traced.example), keep)
        self.set(keep)
        try:
            got = counted(self.model, traced)
        except Exception:  # noqa: BLE001 - whatever it meets, these groups cannot be masked here
            return False
        finally:
            self.set(np.ones(len(keep)))
        return len(got) == len(want) and relative_error(got, want) <= 10 * tolerance(self.model, traced)


def _refuse(model: nn.Module) -> None:
    if any(KEY in m.__dict__ for m in model.modules()):
        raise InputsError(f"this {type(model).__name__} carries masks already; finish() or detach() the other pruner")
    require_whole(model, shards=True)
