"""What a criterion sees of a model at work: parameters, batches, and quantities that criteria share."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import CriterionError, FxPruneError, InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Ints
from fxprune.graph.modules import seed_torch, sharded
from fxprune.scoring import distributed as ranks
from fxprune.scoring.backward import backward
from fxprune.scoring.batches import batch_size, blind, describe, missing, named, run, take
from fxprune.scoring.elementwise import Elementwise, Part
from fxprune.scoring.hessian import Curvature, Method, curvature
from fxprune.scoring.moments import Gathering, Inputs, Key
from fxprune.scoring.observation import Added, Observer, Visit
from fxprune.scoring.parts import Halving, out_of_memory, part_of
from fxprune.scoring.sharded import refuse_samples, require_even, sharded_backward
from fxprune.scoring.storage import Rows, Sums
from fxprune.scoring.streaming import Batches, as_batches, number_of

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
Tensors: TypeAlias = dict[str, Tensor]
T = TypeVar("T")
G = TypeVar("G", bound=Mapping[str, Tensor])


@dataclass(frozen=True, eq=False)
class Context:
    """What a criterion may ask for.  Within, the model is in eval mode and all its parameters require grad.

    Quantities that criteria share are computed when first asked for, and kept in `memo`; leave them as they are.  In a
    distributed run they are those of all processes' batches together.

    Attributes:
        graph: the channels.
        model: the traced model; a criterion may read it, and must leave its weights as they are.
        criterion: the criterion's name, for messages.
        seed: seeds `generator`, and (plus the batch's number) torch's own generators before each `loss`.
        progress: whether `track` shows a bar.
        package: where the criterion comes from, if from a third party.
        memo: what has been computed, for criteria that are given the same model, data, loss and seed.
        notes: what the criterion has to say about how it computed its scores; see `note`.
    """

    graph: ChannelGraph
    model: nn.Module
    criterion: str
    data: Iterable[Any] | None = None
    loss_function: Loss | None = None
    seed: int = 0
    progress: bool = False
    package: str = ""
    memo: dict[Any, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def who(self) -> str:
        """The criterion as messages name it."""
        return named(self.criterion, self.package)

    @functools.cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Floating-point parameters of the graph, by canonical name."""
        named = self.model.named_parameters()
        return {n: p for n, p in named if n in self.graph.shapes and p.is_floating_point()}

    @functools.cached_property
    def buffers(self) -> Tensors:
        """Floating-point buffers of the graph that act as weights.

        The running statistics of batch and instance norms are left out: they describe activations.
        """
        norms = {m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)}
        running = {id(b) for m in norms for b in (m.running_mean, m.running_var) if b is not None}
        named = self.model.named_buffers()
        return {n: b for n, b in named if n in self.graph.shapes and b.is_floating_point() and id(b) not in running}

    @functools.cached_property
    def tensors(self) -> Tensors:
        """Parameters and buffers together."""
        return {**self.parameters, **self.buffers}

    @functools.cached_property
    def generator(self) -> torch.Generator:
        """A CPU generator of random numbers, seeded."""
        return torch.Generator().manual_seed(self.seed)

    @functools.cached_property
    def device(self) -> torch.device:
        """Where the first parameter is (the CPU where there is none)."""
        return next((p.device for p in self.parameters.values()), torch.device("cpu"))

    @functools.cached_property
    def batches(self) -> tuple[Any, ...] | Batches:
        """The batches: in memory, or of a DataLoader read anew, and the same, whenever they are iterated.

        Raises:
            InputsError: there are none, or `data` is one tensor or one dict instead of a list of batches.
        """
        if self.data is None:
            raise InputsError(missing(self.who, data=True, loss=self.loss_function is None))
        if isinstance(self.data, (Tensor, Mapping, str)) or not isinstance(self.data, Iterable):
            raise InputsError(
                f"data is one {type(self.data).__name__}; pass an iterable of batches, such as the list [batch]"
            )
        found = as_batches(self.data)
        if isinstance(found, Batches):
            if ranks.split():
                found.sizes()  # before any pass: every part needs to know what comes before it in the whole
            return found
        batches = tuple(found)
        if not batches:
            raise InputsError("data holds no batch; pass an iterable with at least one (a generator runs only once)")
        return batches

    # ---- the loss ---------------------------------------------------------------------------------------------------

    def loss(self, batch: Any, number: int | None = None) -> Tensor:
        """The loss of one of `batches`, or of a part of one: a finite scalar with a graph for autograd.

        Torch's generators are seeded by the batch's number first, so a loss that draws noise is the same each time.
        A part of a batch needs a `number` of its own for that.

        Raises:
            InputsError: no loss was passed, or it failed, or it returned no scalar tensor.
            CriterionError: the loss is NaN or infinite.
        """
        if self.loss_function is None:
            raise InputsError(missing(self.who, data=self.data is None, loss=True))
        part = part_of(batch)
        place = part.place if part is not None else self._place(batch) if number is None else None
        number = self._seeded(batch, number)
        with torch.enable_grad(), ranks.placed(place):
            value = self._call(self.loss_function, batch, number)
            value = value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise InputsError(f"loss(model, batch) returned {what} on batch {number}; return one scalar float tensor")
        if not math.isfinite(float(value.detach())):
            raise CriterionError(
                f"{self.who}: the loss of batch {number} is {float(value.detach())}; check the "
                "model's weights and this batch for NaN, and the loss for a division by zero"
            )
        return value

    @functools.cached_property
    def _sizes(self) -> list[list[int]]:
        """Samples of the batches of every process; none where they are no parts."""
        if not ranks.split():
            return []
        held = self.batches
        return ranks.gathered(held.sizes() if isinstance(held, Batches) else [batch_size(b) for b in held])

    def _place(self, batch: Any) -> tuple[int, int] | None:
        """Where a batch starts in the whole that it is a part of, and the samples of that; None: it is a whole."""
        if not ranks.split():
            return None
        own, k = ranks.rank(), number_of(self.batches, batch)
        sizes = [held[k] if k < len(held) else 0 for held in self._sizes]
        return sum(sizes[:own]), sum(sizes)

    def weight(self, batch: Any) -> float:
        """What a batch counts beside those of the other processes: as many samples as it has, if they are parts."""
        place = self._place(batch)
        if place is None or not place[1]:
            return 1.0
        k = number_of(self.batches, batch)
        return batch_size(batch) * sum(k < len(held) for held in self._sizes) / place[1]

    def _seeded(self, batch: Any, number: int | None = None) -> int:
        if number is None:
            part = part_of(batch)
            number = part.number if part is not None else number_of(self.batches, batch)
        seed_torch(self.model, self.seed + number)
        return number

    def _call(self, function: Loss, batch: Any, number: int) -> Any:
        try:
            with ranks.told():  # what is sharded meets the other processes in every forward
                return function(self.model, batch)
        except FxPruneError:
            raise
        except Exception as e:
            if out_of_memory(e):
                raise
            called = "model(batch)" if function is run else "loss(model, batch)"
            raise InputsError(
                f"{called} failed on batch {number} ({describe(batch)}): {type(e).__name__}: {e}; "
                "pass data= and loss= that fit each other"
            ) from e

    def differentiate(self, loss: Tensor, create_graph: bool = False) -> Tensors:
        """∂loss/∂θ of every parameter, zero where the loss does not reach it; `.grad` is not touched.

        Args:
            loss: from `self.loss`.
            create_graph: keep the graph, for a second backward pass.

        Raises:
            InputsError: the loss has no gradient at all, or its backward pass fails.
        """
        refuse_samples(self.who, self.model)
        self._require_graph(loss)
        if create_graph:
            tensors = tuple(self.parameters.values())
            with torch.enable_grad():
                made: tuple[Tensor | None, ...] = torch.autograd.grad(
                    loss, tensors, create_graph=True, allow_unused=True
                )
            found = {n: g for n, g in zip(self.parameters, made, strict=True) if g is not None}
        else:
            found = {}
            backward(loss, self.model, self.parameters, found.__setitem__)
        if not found:
            raise InputsError(blind(self.who, "its gradient reaches none of the parameters"))
        return {n: found[n] if n in found else torch.zeros_like(t) for n, t in self.parameters.items()}

    def _require_graph(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            raise InputsError(
                "loss(model, batch) does not depend on the model's parameters; return a tensor that autograd can "
                "follow (no .item(), .detach() or torch.no_grad() inside)"
            )

    # ---- shared quantities ------------------------------------------------------------------------------------------

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What `make` returns, computed the first time that `key` is asked for."""
        if key not in self.memo:
            self.memo[key] = make()
        held: T = self.memo[key]
        return held

    def gradients(self) -> Mapping[str, Tensor]:
        """g = ∇L of the mean loss over all batches, one batch and one layer's gradient in memory at a time.

        A mapping that reads a large model's from where they lie (`fxprune.scoring.storage`): take one after the other.
        """

        def make() -> Sums:
            sums = Sums(self.parameters)
            return self.telling(sums.settle(self.add_batches(sums)))

        return self.once("gradients", make)

    def squared_gradients(self, per_sample: bool = True) -> Mapping[str, Tensor]:
        """E[g²], the mean over samples (or over batches) of the squares of their own gradients.

        Samples run one by one: memory does not grow with the batch, and any loss will do.
        """

        def make() -> Sums:
            parts = (self.samples if per_sample else self.track)("squared gradients")
            return self.mean_gradients((self.loss(part, k) for k, part in enumerate(parts)), square=True)

        return self.once(("squared gradients", per_sample), make)

    @property
    def halving(self) -> Halving:
        """What takes a batch in parts where memory runs out; made anew, since it holds this, and both would last."""
        return Halving(self.who, self.memo.setdefault("parts", {}), self.note)

    def telling(self, gradient: G) -> G:
        """A gradient that is not zero for all parameters.

        Raises:
            InputsError: it is.
        """
        if not any(bool(g.any()) for g in gradient.values()):
            raise InputsError(
                f"{self.who}: the gradient of the loss is zero for all parameters, which tells nothing about any "
                "channel; check data= and loss=, or use criterion='magnitude'"
            )
        return gradient

    def add_batches(self, onto: Sums, factor: float = 1.0) -> int:
        """Add the gradients of every batch's loss, in its weight, to sums; how many batches there were.

        Raises:
            InputsError: a loss has no gradient at all, or its backward pass fails.
            CriterionError: memory does not suffice for a single sample.
        """
        count = 0
        held = self.batches
        if sharded(self.model):
            require_even(self.who, len(held.sizes() if isinstance(held, Batches) else held))
        for batch in self.track("gradients"):
            count += 1
            weight = self.weight(batch)

            def act(part: Any, share: float, done: set[str], weight: float = weight) -> None:
                def add(name: str, gradient: Tensor) -> None:
                    if name not in done:
                        onto.add(name, gradient, factor * share)
                        done.add(name)

                self.backward(self.loss(part) * weight, add)

            self.halving(batch, number_of(self.batches, batch), act)
        return count

    def backward(self, loss: Tensor, visit: Callable[[str, Tensor], None]) -> None:
        """Hand on the gradient of every parameter that a scalar reaches, once each (see `fxprune.scoring.backward`).

        Raises:
            InputsError: it reaches none, or the pass fails.
        """
        self._require_graph(loss)
        if sharded(self.model):
            reached = sharded_backward(loss, self.parameters, visit)
        else:
            reached = backward(loss, self.model, self.parameters, visit)
        if not reached:
            raise InputsError(blind(self.who, "its gradient reaches none of the parameters"))

    def mean_gradients(self, losses: Iterable[Tensor | None], square: bool = False) -> Sums:
        """The mean over losses, of all processes, of their gradients or the squares of these; None counts as zero.

        Raises:
            InputsError: it is zero for all parameters.
        """
        refuse_samples(self.who, self.model)
        sums = Sums(self.parameters)

        def add(name: str, gradient: Tensor) -> None:
            sums.add(name, _squared(gradient) if square else gradient)

        count = 0
        for loss in losses:
            count += 1
            if loss is not None:
                self.backward(loss, add)
        return self.telling(sums.settle(count))

    def curvature(self, method: Method = "auto", eps: float = 1e-4) -> Curvature:
        """The gradient g of the mean loss, H g with its Hessian H, and how that was computed."""
        return self.once(("H g", method, eps), lambda: curvature(self, method, eps))

    def hessian_gradient(self, method: Method = "auto", eps: float = 1e-4) -> Mapping[str, Tensor]:
        """H g alone (see `fxprune.scoring.hessian`)."""
        return self.curvature(method, eps).product

    def beside(
        self, sums: Mapping[str, Tensor], of: Callable[..., Tensor], *more: Mapping[str, Tensor]
    ) -> dict[str, Elementwise]:
        """Parameter name -> `of(parameter, sum, ...)`, element by element: read when it is summed into channels."""

        def part(held: Mapping[str, Tensor], name: str) -> Part:
            return Rows(held, name) if isinstance(held, Sums) else held[name]

        every = (sums, *more)
        return {n: Elementwise(p, of, tuple(part(held, n) for held in every)) for n, p in self.parameters.items()}

    def note(self, text: str) -> None:
        """Have the report tell something about how the scores came about."""
        if text not in self.notes:
            self.notes.append(text)

    def inputs(self, covariance: bool = False) -> dict[Key, Inputs]:
        """(weight, axis) -> mean squares of what is summed over it, or covariances if the axis can be pruned."""

        def make() -> dict[Key, Inputs]:
            axes = [(n, d) for n, labels in self.graph.tensors.items() for d in range(len(labels))]
            wanted = frozenset(k for k in axes if not covariance or self.components(*k).any())
            gathering = Gathering(covariance, wanted)
            self.observe(gathering, "input covariances" if covariance else "input norms")
            return gathering.result()

        return self.once(("inputs", covariance), make)

    def components(self, tensor: str, axis: int) -> Ints:
        """The graph's component of every position of a tensor's axis; 0 is frozen."""
        labels = self.graph.tensors[tensor][axis]
        size = self.graph.shapes[tensor][axis]
        return np.zeros(size, np.int64) if labels is None else self.graph.component[labels]

    # ---- passes over the data ---------------------------------------------------------------------------------------

    def observe(self, visit: Visit, title: str, added: Added | None = None) -> None:
        """Run the model forward on every batch; `visit` gets every contraction with one of its tensors, `added` what
        is added to its output as it is.

        The loss runs the model, without gradients; where there is none, a batch is what the model takes.
        """
        failed: list[Exception] = []
        calls = 0

        def visited(visit: Callable[..., None], *seen: Any) -> None:
            nonlocal calls
            calls += 1
            try:
                visit(*seen)
            except Exception as e:
                failed.append(e)
                raise

        def act(part: Any, share: float, done: set[int]) -> None:
            at = itertools.count()

            def fresh(visit: Callable[..., None], *seen: Any) -> None:
                if (k := next(at)) not in done:  # an observed part's calls come in the whole batch's order
                    visited(visit, *seen)
                    done.add(k)

            try:
                self.watch(
                    part, functools.partial(fresh, visit), None if added is None else functools.partial(fresh, added)
                )
            except InputsError:
                if failed:  # not the loss's fault
                    raise failed.pop() from None
                raise

        for batch in self.track(title):
            self.halving(batch, number_of(self.batches, batch), act)
        if not calls and self.loss_function is not None and self.tensors:
            raise InputsError(blind(self.who, "it uses none of its weights"))

    def watch(self, batch: Any, visit: Visit, added: Added | None = None) -> None:
        """`observe` for one of `batches`, or a part of one."""
        number, whole = self._seeded(batch), part_of(batch)
        place = self._place(batch) if whole is None else whole.place
        with torch.no_grad(), Observer(self.tensors, visit, added), ranks.placed(place):
            self._call(self.loss_function or run, batch, number)

    def mean_over_batches(self, of: Callable[[Any], Tensors], title: str) -> Sums:
        """The mean of of(batch) by parameter name, zero where `of` gives nothing; summed in float32 at least.

        Takes the dict that `of` returns apart, so that no more than one set of tensors beside the sum is in memory.
        """
        refuse_samples(self.who, self.model)
        sums, count = Sums(self.parameters), 0
        for batch in self.track(title):
            count += 1
            found = of(batch)
            for name in list(found):
                # A copy: autograd may give two parameters one and the same tensor.
                sums.add(name, found.pop(name).detach().clone(), self.weight(batch))
        return sums.settle(count)

    def samples(self, title: str) -> Iterator[Any]:
        """Every sample of every batch, as a batch of one.

        Raises:
            InputsError: a batch holds no tensor whose first axis could count samples.
        """
        for number, batch in enumerate(self.track(title)):
            if not batch_size(batch):
                raise InputsError(
                    f"{self.who} takes batches apart, and batch {number} ({describe(batch)}) has no tensor whose "
                    "first axis counts samples; pass batches of tensors, or an option that works on whole batches"
                )
            for i in range(batch_size(batch)):
                yield take(batch, [i])

    def track(self, title: str) -> Iterable[Any]:
        """The batches, behind a progress bar if one was asked for."""
        if not self.progress or not ranks.first():
            return self.batches
        from rich.progress import track

        return track(self.batches, description=f"{self.criterion}: {title}")


def _squared(gradient: Tensor) -> Tensor:
    """In float32 at least: squares of small numbers vanish in half precision."""
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32)).square()
