"""Knowledge distillation from the dense model, while the masks move and after the hand-off.

    L = L_task + output · D(z, z_T) + features · mean over layers of  Σ m (f − f_T)² / Σ m f_T²
               + jacobian · Σ (‖J v‖ − ‖J_T v‖)² / Σ ‖J_T v‖²

z are the outputs of the model and f those of inner modules; T marks the dense model on the very same inputs, whatever
the loss made of its batch.  D is the mean squared error, or T² KL(softmax(z_T / T) ‖ softmax(z / T)).  A feature counts
as much as its mask m: one that nothing reads may become what it will, and after the hand-off, where it is gone, the
term is what it was before.  With projections the term is ‖P (m f) − f_T‖² / ‖f_T‖² instead, over all that the dense
model has.  J v is how the outputs move with the input along a random direction v, a finite difference; matching its
length matches Jᵀ J, how strongly the model answers, and not the answer itself, of which the outputs tell already.

Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015; Romero et al., FitNets, ICLR 2015; Zheng and
Shlizerman, 2ndMatch, CVPR 2026 (arXiv 2506.05398).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxprune.arguments import FLAG, MAPPING, NUMBER, POSITIVE, SEVERAL, TEXT, require_fields, shown
from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.rewriting.skip import Skip
from fxprune.scoring.timesteps import Process, Timesteps, chosen
from fxprune.training.calls import Call, again, watched
from fxprune.training.features import Axes, Projections, chosen_sites
from fxprune.training.terms import How, compared, distance, mismatch, sensitivity

KINDS = ("auto", "mse", "kl")
WEIGHTS = ("output", "features", "jacobian")
TIME = "timestep"  # forward's argument
Weighing: TypeAlias = Callable[[Tensor], Tensor]  # weights of samples, by their times


@dataclass(frozen=True)
class Distillation:
    """What the small model learns from the dense one.

    Attributes:
        output: weight of the outputs' term; the recipe that `Training` has by itself gives it 16.
        features: weight of the features' term.
        layers: modules whose outputs are features; none: the outermost elements of `nn.ModuleList` and
            `nn.Sequential` that give one tensor.
        kind: "mse", "kl" (over the last axis), or "auto": KL for what the model calls `logits`, and for outputs whose
            log-softmax the loss takes (as cross entropy does), over that axis; else MSE.
        temperature: T.
        jacobian: weight of the term of ‖J v‖; it costs one more forward of both models a step.
        projections: compare all features of the dense model with a learned linear map of those that the student has,
            layer by layer; the maps train along at ten times the rate and are not part of the result.
        unconditional: what stands for "no condition", by argument of forward (`{"class_labels": 1000}`, or the text
            embeddings of an empty prompt, of one sample): outputs are compared for it, too, which guidance reads as
            much as those under the condition.  It costs one more forward of both models.
        timesteps: weigh every sample's terms by its time in a diffusion process, in multiples of the mean: a
            `Timesteps`, or the name of its rule ("uniform", "snr"); None: all alike.
    """

    output: float = 1.0
    features: float = 0.0
    layers: tuple[str, ...] = ()
    kind: str = "auto"
    temperature: float = 1.0
    jacobian: float = 0.0
    projections: bool = False
    unconditional: Mapping[str, Any] | None = None
    timesteps: str | Timesteps | None = None

    def __post_init__(self) -> None:
        layers = SEVERAL.raising(InputsError)
        require_fields(self, output=NUMBER, features=NUMBER, layers=layers, kind=TEXT, temperature=POSITIVE)
        require_fields(self, jacobian=NUMBER, projections=FLAG, unconditional=MAPPING.or_none)
        if self.kind not in KINDS:
            raise InputsError(f"kind={self.kind!r} is unknown; choose one of {', '.join(KINDS)}")
        for name in WEIGHTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputsError(f"{name}={getattr(self, name)} is a weight: pass a finite number, not below 0")
        if not 0 < self.temperature < math.inf:
            raise InputsError(f"temperature={self.temperature} must be finite and above 0")
        if self.projections and not self.features:
            raise InputsError("projections=True is for features, whose weight is 0: pass features=, such as 1.0")
        if self.timesteps is not None and _rule(self.timesteps).rule == "threshold":
            raise InputsError('timesteps="threshold" measures the loss, and no teacher does: pass "snr" or a callable')


class Teacher:
    """The dense model as it was at the start, in eval mode.

    Args:
        model: the dense model, which is taken over and frozen.
        graph: its channels; only features need them.
        options: what to learn from it.
        required: raise where the loss or the model leaves nothing to learn from; otherwise warn, and go on without.
        process: of a diffusion model, for `timesteps`.
        drawn: how the loss draws its times, where it does.

    Attributes:
        projections: what trains along with the student; None without.

    Raises:
        InputsError: a layer is unknown or gives no single tensor; or none is found; or features without a graph; or
            timesteps without a process.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph | None,
        options: Distillation,
        required: bool = True,
        process: Process | None = None,
        drawn: str | Timesteps | None = None,
    ) -> None:
        self.options, self.required, self.idle = options, required, False
        self.weighing = _product(_weighing(options.timesteps, process), _balance(drawn, process))
        self.model = model.eval().requires_grad_(False)
        self.sites: dict[str, Axes] = chosen_sites(model, graph, options.layers) if options.features else {}
        place = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.projections = Projections(self.sites, place) if options.projections else None
        self.mask: Tensor | None = None
        self.keep: npt.NDArray[Any] | None = None

    def follow(self, mask: npt.NDArray[Any]) -> None:
        """Take new masks, one number for every component of the graph; frozen ones (0) count as one."""
        if self.sites:
            self.mask = torch.from_numpy(mask).float()
            self.mask[0] = 1.0

    def cut(self, keep: npt.NDArray[Any], optimizer: torch.optim.Optimizer | None = None) -> None:
        """The student has lost its channels: compare with what the teacher has of the others."""
        self.mask, self.keep = None, keep
        if self.projections is not None:
            self.projections.cut(keep, optimizer)

    def loss(self, student: nn.Module, task: Callable[[], Tensor]) -> Tensor:
        """What `task` returns, with the terms of distillation for every call of the student in it."""
        if self.idle:
            return task()
        with watched(student, self._left(student), random=self.options.jacobian > 0) as calls:
            value = task()
        try:
            if not calls:
                raise InputsError(
                    f"the loss does not call the {type(student).__name__} itself, so that its outputs cannot be "
                    "compared with the dense model's; call model(...) in the loss, or pass distill=None"
                )
            return value + sum((self._terms(student, call, value) for call in calls), torch.zeros_like(value))
        except InputsError as e:
            if self.required:
                raise
            self.idle = True
            warnings.warn(f"this run trains without the dense model's outputs: {e}", stacklevel=2)
            return value

    def _terms(self, student: nn.Module, call: Call, value: Tensor) -> Tensor:
        options, weights = self.options, self._weights(student, call)
        with torch.no_grad(), watched(self.model, self.sites) as seen:
            again(self.model, call)
        (taught,) = seen
        how = compared(call.out, value, options.kind)
        total = options.output * distance(call.out, taught.out, how, options.temperature, weights)
        if self.sites:
            each = [self._feature(n, f, taught.features[n], weights) for n, f in call.features.items()]
            total = total + options.features * torch.stack(each).mean()
        if options.jacobian:
            total = total + options.jacobian * self._jacobian(student, call, taught.out, weights)
        if options.unconditional:
            total = total + options.output * self._without_condition(student, call, how, weights)
        return total

    def _left(self, student: nn.Module) -> list[str]:
        """The layers whose features are compared: those that were not taken out as, or with, a block."""
        modules = dict(student.named_modules())
        left = [n for n in self.sites if n in modules and not isinstance(modules[n], Skip)]
        if self.sites and not left:
            raise InputsError(
                f"every layer whose features would be compared was taken out of the {type(student).__name__} "
                f"({', '.join(self.sites)}); name others with Distillation(layers=...)"
            )
        return left

    def _weights(self, student: nn.Module, call: Call) -> Tensor | None:
        """(n,), of the samples of a call."""
        if self.weighing is None:
            return None
        times = call.argument(student, TIME)
        if not isinstance(times, Tensor) or not times.dim():
            raise InputsError(
                f"Distillation(timesteps=...) needs each sample's time, and the loss calls the "
                f"{type(student).__name__} without a tensor {TIME}= of them"
            )
        return self.weighing(times)

    def _jacobian(self, student: nn.Module, call: Call, taught: Any, weights: Tensor | None) -> Tensor:
        there, step = call.moved(student)
        ours = sensitivity(again(student, there), call.out, step)
        with torch.no_grad():
            theirs = sensitivity(again(self.model, there), taught, step)
        return mismatch(ours, theirs, weights)

    def _without_condition(self, student: nn.Module, call: Call, how: How, weights: Tensor | None) -> Tensor:
        free = call.unconditional(student, self.options.unconditional or {})
        with torch.no_grad():
            taught = again(self.model, free)
        return distance(again(student, free), taught, how, self.options.temperature, weights)

    def _feature(self, name: str, student: Tensor, teacher: Tensor, samples: Tensor | None) -> Tensor:
        if self.projections is not None and name in self.projections.axes:
            return _relative(self.projections.projected(name, student, self.mask), teacher, None, samples)
        weight = torch.ones((), device=teacher.device)
        for axis, components in self.sites[name]:
            shape = [1] * teacher.dim()
            shape[axis] = -1
            if self.keep is not None:
                kept = torch.from_numpy(self.keep[components].nonzero()[0])
                teacher = teacher.index_select(axis, kept.to(teacher.device))
            elif self.mask is not None:
                weight = weight * self.mask[torch.from_numpy(components)].to(teacher.device).view(shape)
        return _relative(student, teacher, weight, samples)


def _rule(timesteps: str | Timesteps) -> Timesteps:
    try:
        return chosen(timesteps)
    except InputsError as e:
        raise InputsError(f"Distillation(timesteps={shown(timesteps)}): {e}") from e


def _product(first: Weighing | None, second: Weighing | None) -> Weighing | None:
    """Both weights at once; None: all alike."""
    if first is None or second is None:
        return first or second
    return lambda times: first(times) * second(times)


def _balance(drawn: str | Timesteps | None, process: Process | None) -> Weighing | None:
    """How samples count whose times are drawn more often than they weigh; None: all alike."""
    if drawn is None or process is None or not chosen(drawn).importance:
        return None
    density = chosen(drawn).density(process, lambda times: torch.ones(len(times)))

    def weight(times: Tensor) -> Tensor:
        balance = density.balance(process.shares(times))
        assert balance is not None
        return balance

    return weight


def _weighing(timesteps: str | Timesteps | None, process: Process | None) -> Weighing | None:
    """How samples count by their times; None: all alike."""
    if timesteps is None:
        return None
    if process is None:
        raise InputsError("Distillation(timesteps=...) is for diffusion models, and this is none: leave it out")
    density = chosen(timesteps).density(process, lambda times: torch.ones(len(times)))
    return lambda times: density.weight(process.shares(times))


def _relative(student: Tensor, teacher: Tensor, weight: Tensor | None, samples: Tensor | None) -> Tensor:
    """Σ w s (f − f_T)² / Σ w f_T², with weights of features and of samples."""
    error, size = (student.float() - teacher.float()).square(), teacher.float().square()
    if weight is not None:
        error, size = weight * error, weight * size
    if samples is not None:
        if len(samples) != len(error):
            raise InputsError(
                f"Distillation(timesteps=...) weighs {len(samples)} samples, and features have the shape "
                f"{tuple(error.shape)}; name other layers="
            )
        error = error * samples.to(error.dtype).reshape(-1, *(1,) * (error.dim() - 1))
    return error.sum() / size.sum().clamp_min(torch.finfo(torch.float32).tiny)
