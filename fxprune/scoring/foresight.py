"""Whether H g fits into the memory that is free, known before anything is computed.

    exact                g, H g, both passes' activations and the gradients between them
    finite difference    one ordinary backward pass, one layer's gradient; g, the weights' copy and the difference of
                         gradients too, unless these are kept elsewhere (`fxprune.scoring.storage`)

Two looks, the cheap one first.  The graph's activations at the data's size give a bound that no pass exceeds; where it
is free, nothing else is asked.  Where it is not, both ways are rehearsed on tensors without storage: the loss, its
backward pass and the second one run with shapes alone, so that checkpoints, autocasting and what the loss itself adds
count as they do in earnest.  A loss that looks at values cannot be rehearsed; then the bound must do.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.errors import CriterionError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import same_draws
from fxprune.scoring.backward import backward
from fxprune.scoring.free_memory import free_memory
from fxprune.scoring.identity import length
from fxprune.scoring.storage import elsewhere, forms_of, gib
from fxprune.scoring.streaming import Batches

Free = Callable[[torch.device], int | None]
PASS = 1.5  # activations that an ordinary pass holds, in those of the forward: its own, and gradients on their way
DOUBLE = 5.0  # that a second backward pass holds: forward, first backward, and what these save
BESIDE = 1.4  # of what ops make: that and what kernels take while they run, and the allocator between blocks
LOOKED_AT = 8  # streamed batches to judge by
SCORES = 2.0  # attention's scores that PyTorch's math kernel keeps a pass, in one set of them


class Rehearsable(Protocol):
    """What foresight asks of a context."""

    @property
    def who(self) -> str: ...
    @property
    def graph(self) -> ChannelGraph: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def parameters(self) -> dict[str, nn.Parameter]: ...
    @property
    def batches(self) -> tuple[Any, ...] | Batches: ...
    @property
    def loss_function(self) -> Callable[[nn.Module, Any], Any] | None: ...
    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True)
class Needs:
    """Bytes that either way takes beside the model; `finite_difference` is None where the weights are too coarse."""

    exact: float
    finite_difference: float | None

    @property
    def least(self) -> float:
        """What the cheaper way takes."""
        return self.exact if self.finite_difference is None else min(self.exact, self.finite_difference)


def way_that_fits(ctx: Rehearsable, free: Free | None = None) -> str:
    """Why H g must come from a finite difference ("" where the second backward pass fits, or nothing is known).

    On a CPU, whose memory is not this process's alone, a network too large for gradients beside it takes the cheaper
    way wherever there is one.

    Args:
        ctx: parameters, batches and loss.
        free: device -> bytes; None: `free_memory`.

    Raises:
        CriterionError: neither way fits.
    """
    has = (free or free_memory)(ctx.device)
    sparing = ctx.device.type == "cpu" and kept_elsewhere(ctx) and not halves(ctx.parameters)
    if has is None or (bounded(ctx).exact <= has and not sparing):
        return ""
    needs = rehearsed(ctx) or bounded(ctx)
    if sparing and needs.finite_difference is not None and needs.finite_difference <= min(needs.exact, has):
        return f"the second backward pass would take {gib(needs.exact)}, this {gib(needs.finite_difference)}"
    if needs.exact <= has:
        return ""
    if needs.finite_difference is not None and needs.finite_difference <= has:
        return f"the second backward pass would take {gib(needs.exact)}, and {gib(has)} are free"
    raise CriterionError(
        f"{ctx.who} needs about {gib(needs.least)} beside the model, and {gib(has)} are free on {ctx.device}; pass "
        "smaller batches (data=, samples=), turn on the model's gradient checkpointing, or use criterion='taylor' "
        "(one backward pass) or 'magnitude' (none)"
    )


def halves(parameters: Mapping[str, nn.Parameter]) -> str:
    """The first parameter in half precision ("" for none)."""
    return next((n for n, p in parameters.items() if p.dtype in (torch.float16, torch.bfloat16)), "")


def bounded(ctx: Rehearsable) -> Needs:
    """What either way takes at most, from the graph's activations on its example, scaled to the largest batch."""
    scale = max(1.0, max(largest(b) for b in judged(ctx)) / max(1, largest(ctx.graph.traced.example)))
    made, scores = (n * scale for n in activations(ctx.graph))
    one = PASS * (made + scores)
    return _needs(ctx, DOUBLE * (made + SCORES * scores) + 2 * gradient_bytes(ctx), one)


def rehearsed(ctx: Rehearsable) -> Needs | None:
    """What either way takes, from running both without storage; None where the loss looks at values."""
    batch = max(judged(ctx), key=largest)
    peaks = []
    for twice in (True, False):
        try:
            with same_draws():
                peaks.append(_peak(ctx, batch, twice))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever a loss may do that shapes alone cannot
            if twice and not peaks:
                peaks.append(float("inf"))  # the second pass cannot be; the single one may
                continue
            return None
    return _needs(ctx, *(BESIDE * peak for peak in peaks))


def one_pass(ctx: Rehearsable) -> float | None:
    """What a loss and its backward pass take, from running them without storage; None where that cannot be."""
    try:
        with same_draws():
            return BESIDE * _peak(ctx, max(judged(ctx), key=largest), twice=False)
    except Exception:  # noqa: BLE001 - whatever a loss may do that shapes alone cannot
        return None


def judged(ctx: Rehearsable) -> Iterator[Any]:
    """The batches to judge by: all that are in memory, of streamed ones the first few."""
    return itertools.islice(ctx.batches, None if isinstance(ctx.batches, tuple) else LOOKED_AT)


def _needs(ctx: Rehearsable, double: float, single: float) -> Needs:
    """Peaks of one batch, with the sets of tensors that live beside them."""
    size, several = gradient_bytes(ctx, at_least=4), length(ctx.batches) != 1
    beside = 2 * size if several else 0.0  # g, and the sum of H g
    exact = max(double + beside, 3 * size)  # at the end g, H g and the saliency
    if halves(ctx.parameters):
        return Needs(exact, None)
    layer = 4.0 * max((p.numel() for p in ctx.parameters.values()), default=0)  # the gradient at hand, and in float32
    kept = 0.0 if kept_elsewhere(ctx) else 2 * size + gradient_bytes(ctx)  # g, the difference, and the weights' copy
    return Needs(exact, single + 2 * layer + kept)


def kept_elsewhere(ctx: Rehearsable) -> bool:
    return elsewhere(forms_of(ctx.parameters, sums=True))


def gradient_bytes(ctx: Rehearsable, at_least: int = 1) -> float:
    """Bytes of one set of the parameters' gradients, `at_least` so many an element."""
    return float(sum(p.numel() * max(p.element_size(), at_least) for p in ctx.parameters.values()))


def activations(graph: ChannelGraph) -> tuple[float, float]:
    """Bytes of all values that the graph's nodes make, and of the scores of its fused attentions."""
    seen: set[int] = set()
    total, scores = 0.0, 0.0
    for node in graph.traced.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, Tensor) and (key := value.untyped_storage()._cdata) not in seen:
                seen.add(key)
                total += 0.0 if node.op == "placeholder" else value.numel() * value.element_size()
        if "scaled_dot_product" in str(node.target):
            q, k = (a.meta["val"] for a in node.args[:2])
            scores += q.numel() // q.shape[-1] * k.shape[-2] * q.element_size()
    return total, scores


def largest(batch: Any) -> int:
    """Elements of the largest tensor of a batch."""
    plain = dict(batch) if isinstance(batch, Mapping) else batch
    return max((t.numel() for t in pytree.tree_leaves(plain) if isinstance(t, Tensor)), default=0)


# ---- the rehearsal --------------------------------------------------------------------------------------------------


def _peak(ctx: Rehearsable, batch: Any, twice: bool) -> float:
    """Most bytes alive in one loss and its backward pass, or passes."""
    assert ctx.loss_function is not None
    # The mode is not entered: what no parameter reaches (noise, schedules, a seed made of the images) is computed.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    kernel = sdpa_kernel(SDPBackend.MATH) if twice else contextlib.nullcontext()
    with _stand_ins(ctx.model, mode) as tensors, _Tally(tensors) as tally, kernel, torch.enable_grad():
        named = {n: p for n, p in ctx.model.named_parameters() if n in ctx.parameters}
        parameters = list(named.values())
        loss = ctx.loss_function(ctx.model, batch)
        if not twice:
            backward(loss, ctx.model, named, lambda name, gradient: None)
            return float(tally.peak)
        first: tuple[Tensor | None, ...] = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        live = [g for g in first if g is not None and g.requires_grad]
        held = [torch.empty_like(g) for g in live]
        torch.autograd.grad(live, parameters, held, allow_unused=True)
    return float(tally.peak)


@contextlib.contextmanager
def _stand_ins(model: nn.Module, mode: FakeTensorMode) -> Iterator[list[Tensor]]:
    """Within, parameters and buffers of the model have shapes and no storage."""
    made: dict[int, Tensor] = {}

    def stand_in(t: Tensor) -> Tensor:
        if id(t) not in made:
            fake = mode.from_tensor(t.detach())
            required = t.requires_grad
            made[id(t)] = nn.Parameter(fake, required) if isinstance(t, nn.Parameter) else fake
        return made[id(t)]

    tables: list[dict[str, Any]] = [table for m in model.modules() for table in (m._parameters, m._buffers)]
    saved = [dict(table) for table in tables]
    try:
        for table, held in zip(tables, saved, strict=True):
            table.update({k: None if t is None else stand_in(t) for k, t in held.items()})
        yield list(made.values())
    finally:
        for table, held in zip(tables, saved, strict=True):
            table.clear()
            table.update(held)


class _Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that ops make, while they live."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: float = 0.0
        self.peak: float = 0.0
        self.known = {t.untyped_storage()._cdata for t in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in pytree.tree_leaves(out):
            if isinstance(t, Tensor):
                self._add(t.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, n = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.now += n
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, n)

    def _drop(self, key: int, n: int) -> None:
        self.known.discard(key)
        self.now -= n
