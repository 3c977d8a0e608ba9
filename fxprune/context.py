"""What a criterion sees of a model at work, and the promise that the model is left as it was."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.channels import ChannelGraph
from fxprune.errors import CriterionError, FxPruneError, InputsError
from fxprune.trace import evaluating

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, eq=False)
class Context:
    """What a criterion may ask for.  Within, the model is in eval mode and all its parameters require grad.

    Attributes:
        graph: the channels.
        model: the traced model; a criterion may read it, and must leave its weights as they are.
        criterion: the criterion's name, for messages.
        seed: seeds `generator`, and (plus the batch's number) torch's own generators before each `loss`.
        progress: whether `track` shows a bar.
    """

    graph: ChannelGraph
    model: nn.Module
    criterion: str
    data: Iterable[Any] | None = None
    loss_function: Loss | None = None
    seed: int = 0
    progress: bool = False

    @functools.cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Floating-point parameters of the graph, by canonical name."""
        named = self.model.named_parameters()
        return {n: p for n, p in named if n in self.graph.shapes and p.is_floating_point()}

    @functools.cached_property
    def buffers(self) -> dict[str, Tensor]:
        """Floating-point buffers of the graph that act as weights.

        The running statistics of batch and instance norms are left out: they describe activations.
        """
        norms = {m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)}
        running = {id(b) for m in norms for b in (m.running_mean, m.running_var) if b is not None}
        named = self.model.named_buffers()
        return {n: b for n, b in named if n in self.graph.shapes and b.is_floating_point() and id(b) not in running}

    @functools.cached_property
    def generator(self) -> torch.Generator:
        """A CPU generator of random numbers, seeded."""
        return torch.Generator().manual_seed(self.seed)

    @functools.cached_property
    def batches(self) -> tuple[Any, ...]:
        """The batches, read from `data` once.

        Raises:
            InputsError: there are none, or `data` is one tensor or one dict instead of a list of batches.
        """
        if self.data is None:
            raise InputsError(missing(self.criterion, data=True, loss=self.loss_function is None))
        if isinstance(self.data, (Tensor, Mapping, str)) or not isinstance(self.data, Iterable):
            raise InputsError(
                f"data is one {type(self.data).__name__}; pass an iterable of batches, such as the list [batch]"
            )
        batches = tuple(self.data)
        if not batches:
            raise InputsError("data holds no batch; pass an iterable with at least one (a generator runs only once)")
        return batches

    def loss(self, batch: Any) -> Tensor:
        """The loss of one of `batches`: a finite scalar with a graph for autograd.

        Torch's generators are seeded by the batch's number first, so a loss that draws noise is the same each time.

        Raises:
            InputsError: no loss was passed, or it failed, or it returned no scalar tensor.
            CriterionError: the loss is NaN or infinite.
        """
        if self.loss_function is None:
            raise InputsError(missing(self.criterion, data=self.data is None, loss=True))
        number = next((i for i, b in enumerate(self.batches) if b is batch), 0)
        seed_torch(self.model, self.seed + number)
        value = self._call(self.loss_function, batch, number)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputsError(f"loss(model, batch) returned {what} on batch {number}; return one scalar float tensor")
        if not math.isfinite(float(value.detach())):
            raise CriterionError(
                f"criterion {self.criterion!r}: the loss of batch {number} is {float(value.detach())}; check the "
                "model's weights and this batch for NaN, and the loss for a division by zero"
            )
        return value.reshape(())

    def _call(self, loss: Loss, batch: Any, number: int) -> Any:
        try:
            with torch.enable_grad():
                return loss(self.model, batch)
        except (FxPruneError, torch.OutOfMemoryError):
            raise
        except Exception as e:
            raise InputsError(
                f"loss(model, batch) failed on batch {number} ({_describe(batch)}): {type(e).__name__}: {e}; "
                "pass data= and loss= that fit each other"
            ) from e

    def differentiate(self, loss: Tensor, create_graph: bool = False) -> dict[str, Tensor]:
        """∂loss/∂θ of every parameter, zero where the loss does not reach it; `.grad` is not touched.

        Args:
            loss: from `self.loss`.
            create_graph: keep the graph, for a second backward pass.

        Raises:
            InputsError: the loss has no gradient at all.
        """
        if not loss.requires_grad:
            raise InputsError(
                "loss(model, batch) does not depend on the model's parameters; return a tensor that autograd can "
                "follow (no .item(), .detach() or torch.no_grad() inside)"
            )
        names, tensors = zip(*self.parameters.items(), strict=True)
        found: tuple[Tensor | None, ...] = torch.autograd.grad(
            loss, tensors, create_graph=create_graph, allow_unused=True
        )
        return {n: torch.zeros_like(t) if g is None else g for n, t, g in zip(names, tensors, found, strict=True)}

    def gradients(self) -> dict[str, Tensor]:
        """g = ∇L of the mean loss over all batches, one batch in memory at a time."""
        return self.mean_over_batches(lambda batch: self.differentiate(self.loss(batch)), "gradients")

    def mean_over_batches(self, of: Callable[[Any], dict[str, Tensor]], title: str) -> dict[str, Tensor]:
        """(1/B) Σ_b of(batch_b) by parameter name, zero where `of` gives nothing; summed in float32 at least.

        Takes the dict that `of` returns apart, so that no more than one set of tensors beside the sum is in memory.
        """
        total: dict[str, Tensor] = {}
        for batch in self.track(title):
            part = of(batch)
            for name in list(part):
                p = part.pop(name).detach()
                p = p.to(torch.promote_types(p.dtype, torch.float32)) / len(self.batches)
                total[name] = total[name].add_(p) if name in total else p
        return {n: total[n] if n in total else torch.zeros_like(p).detach() for n, p in self.parameters.items()}

    def track(self, title: str) -> Iterable[Any]:
        """The batches, behind a progress bar if one was asked for."""
        if not self.progress:
            return self.batches
        from rich.progress import track

        return track(self.batches, description=f"{self.criterion}: {title}")


def missing(criterion: str, data: bool, loss: bool) -> str:
    """The one sentence that asks for data, a loss, or both."""
    wanted = [
        text
        for text, absent in (
            ("data=, an iterable of batches", data),
            ("loss=, a callable loss(model, batch) that returns a scalar tensor", loss),
        )
        if absent
    ]
    return f"criterion {criterion!r} looks at the model at work: pass {', and '.join(wanted)}"


def _describe(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"a dict of {', '.join(map(str, batch))}"
    if isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} of {len(batch)}"
    return f"a {type(batch).__name__}"


@contextlib.contextmanager
def unchanged(model: nn.Module, criterion: str) -> Iterator[None]:
    """Within: eval mode, all parameters require grad, no `.grad`, own random state.  Afterwards all is as before."""
    parameters = dict(model.named_parameters())
    versions = {n: p._version for n, p in parameters.items()}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=_cuda_devices(model)))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluating(model))
        stack.enter_context(_buffers_kept(model))
        stack.enter_context(_requiring_grad(parameters.values()))
        yield
    changed = [n for n, p in parameters.items() if p._version != versions[n]]
    if changed:
        raise CriterionError(
            f"criterion {criterion!r} changed the model: {changed[0]} was written to in place; a criterion must work "
            "on copies (and a loss must not step an optimizer)"
        )


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    held = [(m, k, b) for m in model.modules() for k, b in m._buffers.items() if b is not None]
    saved = [b.detach().clone() for _, _, b in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, key, buffer), value in zip(held, saved, strict=True):
                module._buffers[key] = buffer
                buffer.copy_(value)


@contextlib.contextmanager
def _requiring_grad(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    was = [(p, p.requires_grad, p.grad) for p in parameters]
    try:
        for p, _, _ in was:
            p.grad = None
            if p.is_floating_point():
                p.requires_grad_(True)
        yield
    finally:
        for p, required, grad in was:
            p.requires_grad_(required)
            p.grad = grad


def _cuda_devices(model: nn.Module) -> list[int]:
    devices = {t.device for t in itertools.chain(model.parameters(), model.buffers()) if t.is_cuda}
    return sorted(d.index or 0 for d in devices)


def seed_torch(model: nn.Module, seed: int) -> None:
    """Seed torch's generator of the CPU and of the model's devices, and no other."""
    torch.default_generator.manual_seed(seed)
    for index in _cuda_devices(model):
        torch.cuda.default_generators[index].manual_seed(seed)
