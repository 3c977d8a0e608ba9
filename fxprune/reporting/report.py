"""What a pruning run did: attached to the model it returns, read with `fxprune.report(small)`."""

from __future__ import annotations

import importlib
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxprune.adapter import find_adapter
from fxprune.arguments import MAPPING, TEXT, takes
from fxprune.errors import PlanError, printable
from fxprune.graph.channels import ChannelGraph, source_of
from fxprune.graph.groups import Held
from fxprune.graph.outputs import shortened
from fxprune.graph.rules.op import op_name
from fxprune.notebook import shown
from fxprune.planning.plan import Plan
from fxprune.reporting.anatomy import Anatomy
from fxprune.reporting.figures import check_file, writing
from fxprune.reporting.history import History
from fxprune.reporting.page import page
from fxprune.reporting.speed import Timing
from fxprune.rewriting.attributes import Change
from fxprune.rewriting.unread import Stale
from fxprune.verification import Check

_KEY = "_fxprune_report"
ADOPTS = "fxprune.saving.methods"  # a later package, found by name: what it does to every model with a report
MOST = 6  # lines of one kind that a report prints


@dataclass(frozen=True)
class Cause:
    """One reason why tensors could not be pruned: how many axes, the share of parameters they belong to, and where."""

    name: str
    axes: int
    share: float
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What happened.

    Attributes:
        plan: what went (the last time, where the model was pruned several times; `earlier` holds the plans before).
        changes: attributes of modules that changed.
        checks: proofs that were run, with their errors.
        forward: "module", or "graph" where the rewritten graph became the model's forward (`reason` says why).
        held: why the rest could not be pruned.
        seconds: step -> seconds.
        seed: what everything drawn at random came from.
        scoring: what the criterion tells about how it computed its scores.
        timing: dense and pruned model timed against each other, where both were run to prove the result and a forward
            takes no long time (or the budget was a latency), on the device that it names.
        unread: parameters that neither eval nor train mode read on the example inputs; they are whole.
        unseen: why train mode could not be looked at, where it could not.
        outputs: which outputs were released, and which compared, where not all of them count.
        history: figures of every step, where the model was trained while it was pruned; `picture` is where they were
            drawn.  Neither is saved with the model.
        reduced: means, maxima and the like that are taken over the channels that stay, and thus changed what they mean.
        misfits: with `legal_for=`, the layers that the format does not take.
        stale: integers that equal a width that changed, and that no trace has read: they are as they were, for whoever
            reads them to look at.
        anatomy: layer by layer and group by group what went, for `to_html`.
        fitted: with `replace=`, what linear maps stand for, and how much of that they give.
        maker, steps: with a stock shape, what makes the model anew from its config, and which entries can shrink.
    """

    plan: Plan
    changes: tuple[Change, ...]
    checks: tuple[Check, ...] = ()
    forward: str = "module"
    reason: str = ""
    held: tuple[Cause, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    earlier: tuple[Plan, ...] = ()
    seed: int | None = None
    timing: Timing | None = field(default=None, compare=False)
    unread: tuple[str, ...] = ()
    unseen: str = ""
    outputs: str = ""
    history: History | None = None
    picture: str = ""
    scoring: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    stale: tuple[Stale, ...] = ()
    anatomy: Anatomy | None = field(default=None, repr=False, compare=False)
    misfits: tuple[str, ...] = ()
    maker: str = ""
    steps: tuple[str, ...] = ()
    fitted: tuple[str, ...] = ()

    @property
    def total(self) -> Plan:
        """What was asked and what went in all, over `earlier` and `plan`; what went last where there is one plan."""
        return in_all((*self.earlier, self.plan))

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the stock model: measured where `timing` says so, else what the plan predicts."""
        return self.timing.speedup if self.timing is not None else self.total.speedup

    @property
    def speed(self) -> str:
        """The same in words, with where it comes from."""
        return str(self.timing) if self.timing is not None else self.total.speed

    def after(self, before: Report) -> Report:
        """This report, of a model that `before` had been pruned already: changes are told from the stock model on."""
        old = {(c.path, c.name): c for c in before.changes}
        new = {(c.path, c.name): c for c in self.changes}
        both = [Change(*key, (old.get(key) or new[key]).before, (new.get(key) or old[key]).after) for key in old | new]
        timing = self.timing.since(before.timing) if self.timing and before.timing else None
        return replace(self, changes=tuple(both), earlier=(*before.earlier, before.plan), timing=timing)

    @takes(name=TEXT.or_none, samples=MAPPING.or_none)
    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        samples: Mapping[str, Tensor] | None = None,
        name: str | None = None,
    ) -> Path:
        """Write the report as one page of HTML that needs nothing else: tables, the channel graph, masks, samples.

        Args:
            path: of the file.
            samples: what they are called ("dense", "pruned") -> images (n, 1 or 3, height, width) in [-1, 1].
            name: what the model is called on the page; None: its class.

        Raises:
            InputsError: the file cannot be written, or the samples are no images.
        """
        file = check_file(path, "path")
        text = page({name or self.plan.model: self}, samples)
        with writing(file):
            file.write_text(text, encoding="utf-8")
        return file

    def _repr_html_(self) -> str:
        rows = [
            (k, f"{a:,.0f}", f"{b:,.0f}", f"{b / a - 1 if a else 0:+.1%}") for k, (a, b) in self.total.costs.items()
        ]
        notes = [*map(str, self.checks), *filter(None, [self.speed]), "to_html(path) writes all of it"]
        return shown(_line(self.total), ["", "dense", "pruned", "change"], rows, notes)

    def __repr__(self) -> str:
        lines = [f"{_line(self.total)} in all, by {len(self.earlier) + 1} plans; the last:"] if self.earlier else []
        lines += [repr(self.plan), f"  forward: {self.forward}{f' ({self.reason})' if self.reason else ''}"]
        lines += (
            [f"  made by {self.maker}, where these can shrink: {'; '.join(self.steps) or 'layers'}"]
            if self.maker
            else []
        )
        lines += [f"  scores: {note}" for note in self.scoring]
        lines += [f"  {check}" for check in self.checks]
        lines += [f"  {self.speed}"] if self.speed else []
        lines += [f"  outputs: {self.outputs}"] if self.outputs else []
        lines += [f"  train mode was not checked: {self.unseen}"] if self.unseen else []
        lines += [f"  read by no trace, left whole: {shortened(self.unread)}"] if self.unread else []
        lines += [f"  {note}" for note in self.fitted[:MOST]]
        lines += [f"  over what stays: {r}" for r in self.reduced[:MOST]]
        lines += [f"  left as it was: {s}" for s in self.stale[:MOST]]
        lines += [f"  not legal: {m}" for m in self.misfits[:MOST]]
        more = max(0, len(self.reduced) - MOST) + max(0, len(self.stale) - MOST)
        lines += [f"  ... and {more} more in .reduced and .stale"] if more else []
        lines += [f"  held back by {c.name}: {c.axes} axes, {c.share:.1%} of parameters" for c in self.held]
        return printable("\n".join(lines))


def in_all(plans: Sequence[Plan]) -> Plan:
    """The last of several plans, with the costs of all: from before the first, as far as that counted them.

    What was asked in all is what the last plan asked of what there was before it.
    """
    first, last = plans[0], plans[-1]
    costs = {k: (first.costs.get(k, both)[0], both[1]) for k, both in last.costs.items()}
    before, after = costs.get(last.of, (0.0, 0.0))
    if len(plans) == 1 or not before:
        return last
    asked = 1 - last.costs[last.of][0] / before * (1 - last.ratio)
    return replace(last, ratio=asked, achieved=1 - after / before, costs=costs)


def _line(plan: Plan) -> str:
    return f"{plan.model}: {plan.achieved:.1%} of {plan.of} went (asked {plan.ratio:.1%})"


def causes(graph: ChannelGraph) -> tuple[Cause, ...]:
    """Why parameters cannot go, the largest share first; the shares add up to what no cut can take.

    An element can go with a channel along any axis of its tensor, so it is held where all of them are, and the causes
    of these share it in equal parts. Axes of a kernel's positions, which nothing shrinks, are left out.
    """
    total = max(1, sum(math.prod(graph.shapes[t]) for t in graph.parameters))
    by: dict[str, list[Held]] = defaultdict(list)
    for h in graph.frozen():
        if h.tensor in graph.parameters and not (h.cause == "spatial axis" and h.axis >= 2):
            by[h.tensor].append(h)
    share: dict[str, float] = defaultdict(float)
    named: dict[str, list[Held]] = defaultdict(list)
    for tensor, items in by.items():
        held = _held_part(graph, tensor, items) * math.prod(graph.shapes[tensor]) / total
        for h in items:
            share[h.cause] += held / len(items)
            named[h.cause].append(h)
    found = (Cause(name, len(items), share[name], _places(items)) for name, items in named.items())
    return tuple(sorted(found, key=lambda c: -c.share))


def _held_part(graph: ChannelGraph, tensor: str, items: Sequence[Held]) -> float:
    """The part of a tensor that goes with no channel."""
    held = {h.axis: h.positions for h in items}
    part = 1.0
    for d, (size, axis) in enumerate(zip(graph.shapes[tensor], graph.tensors[tensor], strict=True)):
        free = 0 if axis is None or d in held else int((graph.component[axis] != 0).sum())
        part *= held[d] / size if d in held else 1 - free / max(1, size)
    return part


def _places(items: Sequence[Held]) -> tuple[str, ...]:
    return tuple(
        f"{h.tensor}[{h.axis}] {h.why} ({h.op or 'no op'}){f' at {h.source}' if h.source else ''}" for h in items[:3]
    )


def reductions(graph: ChannelGraph, plan: Plan) -> tuple[str, ...]:
    """The reductions over channels that a plan changes, each with its op, its widths and its source line."""
    keep, out = plan.kept(graph), []
    nodes = {n.name: n for mode in graph.modes for n in mode.traced.graph.nodes}
    for r in graph.facts.reduced:
        now = graph.kept(r.axis, keep, len(r.axis))
        if now != len(r.axis) and not r.exact:
            at = source_of(nodes[r.node])
            out.append(
                f"{op_name(nodes[r.node].target)} over {now} of {len(r.axis)} channels{f' at {at}' if at else ''}"
            )
    return tuple(dict.fromkeys(out))


def attach(model: nn.Module, made: Report) -> None:
    """Keep a report beside the model, outside its state."""
    model.__dict__[_KEY] = made
    importlib.import_module(ADOPTS).adopt(model)


def is_pruned(model: nn.Module) -> bool:
    """Whether fxprune has pruned the model."""
    return isinstance(model.__dict__.get(_KEY), Report)


def report(model: Any) -> Report:
    """The report of a pruned or loaded model, or of the pruned part of a pipeline.

    Raises:
        PlanError: where the model was not pruned by fxprune.
    """
    net = model if isinstance(model, nn.Module) else find_adapter(model).unwrap(model)[0]
    made = net.__dict__.get(_KEY)
    if not isinstance(made, Report):
        raise PlanError(f"this {type(model).__name__} was not pruned by fxprune; call fxprune.prune(model) first")
    return made
