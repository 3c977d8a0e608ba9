"""What a denoiser needs to be scored without data: its inputs, batches sampled by itself, the noise-prediction loss.

A batch is a dict, complete and on the CPU or the model's device, so that the loss is a fixed function of the weights:

    images       (n, ...) clean samples (for a latent model: latents)
    noise        like images
    timestep     (n,)
    conditions   {argument of forward: values}, such as class_labels or encoder_hidden_states
    weights      (n,) what each sample's loss counts, or None: 1

Users give less: a tensor of images, a pair (images, class labels), or a dict with the images under "images",
"pixel_values" or "input" and conditions under the names that forward gives them.  With a pipeline that has an encoder,
images may be pixels, and "prompt" may stand for the text conditions.  Noise and times are then drawn for each sample
from a generator that its image and its place in the batch seed: the same batch has the same loss, other batches have
other noise, and parts of a batch in several processes have that of the whole.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.adapters.noising import Noising, Track
from fxprune.adapters.tensors import draw, place
from fxprune.errors import InputsError
from fxprune.graph.modules import evaluating
from fxprune.scoring import distributed as ranks
from fxprune.scoring.context import Loss
from fxprune.scoring.timesteps import Density, Timesteps, own_strata, strata

Batch: TypeAlias = dict[str, Any]
Conditions: TypeAlias = Callable[[int, torch.Generator], dict[str, Any]]
Prepare: TypeAlias = Callable[[Mapping[str, Any]], Mapping[str, Any]]
CHUNK = 4  # samples a calibration batch: gradient criteria keep one batch's activations in memory
LARGE = 1 << 29  # bytes of weights: from there on a CPU, which is no slower with one sample at a time, gets just one
STEPS = 10  # of the sampler
IMAGES = ("images", "pixel_values", "input", "image")
LABELS = ("class_labels", "labels", "label")
ANYTIME = Timesteps()


def no_conditions(n: int, generator: torch.Generator) -> dict[str, Any]:
    """Conditions of an unconditional model: none."""
    return {}


def as_it_is(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch as it is."""
    return batch


@dataclass(frozen=True)
class Denoiser:
    """How to call a model that removes noise.

    Attributes:
        image: shape of one clean sample, without the batch axis.
        noising: the forward process, where no pipeline tells another.
        time: a timestep for example inputs.
        entry: forward's name for the noisy sample.
        conditions: random conditions for n samples.
        made_up: conditions that are no data (positions), which users need not give.
        beside: input channels beside the noisy ones (inpainting), drawn at random.
        no_loss: why there is no noise-prediction loss, where there is none.
        prompted: conditions that a pipeline's own encoders make for n samples, where it has them.
        prepare: what a pipeline's encoders do to a user's batch first.
    """

    image: tuple[int, ...]
    noising: Noising
    time: int | float = 10
    entry: str = "sample"
    conditions: Conditions = no_conditions
    made_up: frozenset[str] = frozenset()
    beside: int = 0
    no_loss: str = ""
    prompted: Conditions | None = None
    prepare: Prepare = as_it_is

    def example_inputs(self, model: nn.Module) -> dict[str, Any]:
        """Keyword arguments for a batch of one."""
        generator = torch.Generator().manual_seed(0)
        device, dtype = place(model)
        kind = torch.int64 if isinstance(self.time, int) else dtype
        return {
            self.entry: self._beside(model, draw(model, (1, *self.image), generator), generator),
            "timestep": torch.tensor([self.time], dtype=kind, device=device),
            **self.conditions(1, generator),
        }

    def loss_of(self, noising: Noising, seed: int | None, timesteps: Timesteps = ANYTIME) -> Loss:
        """Mean squared error of what the model predicts for noisy samples, in float32.

        Where `timesteps` must measure the model, that is done once, on the first batch that comes without times.
        Without a seed, noise and times are drawn anew at each call, from numbers of torch's global generator.
        """
        self.check()
        held: list[Density] = []

        def density(model: nn.Module, samples: Batch) -> Density:
            if not held:
                held.append(self._density(model, noising, samples, timesteps))
            return held[0]

        def loss(model: nn.Module, batch: Any) -> Tensor:
            full = self.complete(model, batch, noising, _fresh() if seed is None else seed, density)
            if full["weights"] is None:
                return nn.functional.mse_loss(*self._answers(model, noising, full))
            weights: Tensor = full["weights"]
            return (self._errors(model, noising, full) * weights).mean()

        return loss

    def calibration(
        self,
        model: nn.Module,
        noising: Noising,
        n: int,
        seed: int,
        progress: bool,
        timesteps: Timesteps = ANYTIME,
    ) -> list[Batch]:
        """n samples that the model draws itself in a few steps, with noise, times and conditions, in small batches."""
        self.check()
        generator = torch.Generator().manual_seed(seed)
        uniform = strata(n, generator)[torch.randperm(n, generator=generator)]  # early and late in each batch
        device = place(model)[0]
        parts = torch.split(uniform, 1 if device.type == "cpu" and _bytes(model) > LARGE else CHUNK)
        with _bar(progress, len(parts) * STEPS) as tick:
            batches = [self._drawn(model, noising, len(part), generator, tick) for part in parts]
        density = self._density(model, noising, batches[0], timesteps)
        times = [noising.at(density.drawn(part)).to(device) for part in parts]
        weights = [density.balance(noising.shares(t)) for t in times]
        return [{**b, "timestep": t, "weights": w} for b, t, w in zip(batches, times, weights, strict=True)]

    def _drawn(self, model: nn.Module, noising: Noising, n: int, generator: torch.Generator, tick: Track) -> Batch:
        conditions = (self.prompted or self.conditions)(n, generator)
        start = draw(model, (n, *self.image), generator)
        with torch.no_grad(), evaluating(model):
            clean = noising.sample(lambda x, t: self.predict(model, x, t, conditions), start, STEPS, tick)
        return {"images": clean, "noise": draw(model, (n, *self.image), generator), "conditions": conditions}

    def _density(self, model: nn.Module, noising: Noising, samples: Batch, timesteps: Timesteps) -> Density:
        def losses(times: Tensor) -> Tensor:
            n = len(samples["images"])
            with torch.no_grad(), evaluating(model):
                every = (t.to(place(model)[0]).expand(n) for t in times)
                means = [self._errors(model, noising, {**samples, "timestep": t}).mean() for t in every]
                return ranks.mean_of_parts(torch.stack(means), n)

        return timesteps.density(noising, losses)

    def _answers(self, model: nn.Module, noising: Noising, full: Batch) -> tuple[Tensor, Tensor]:
        """What the model predicts and what it should, in float32."""
        clean, noise, times = full["images"], full["noise"], full["timestep"]
        predicted = self.predict(model, noising.noised(clean, noise, times), times, full["conditions"])
        return predicted.float(), noising.target(clean, noise, times).float()

    def _errors(self, model: nn.Module, noising: Noising, full: Batch) -> Tensor:
        predicted, target = self._answers(model, noising, full)
        return (predicted - target).square().flatten(1).mean(1)

    def complete(
        self,
        model: nn.Module,
        batch: Any,
        noising: Noising,
        seed: int = 0,
        density: Callable[[nn.Module, Batch], Density] | None = None,
    ) -> Batch:
        """A user's batch (or ours) with everything that the loss needs, on the model's device.

        Args:
            density: of times, for a model and samples; None: uniform.

        Raises:
            InputsError: no images, images of the wrong shape or kind, or a condition is missing.
        """
        device, dtype = place(model)
        given = self.prepare(_named(batch))
        images = self._images(given, type(model).__name__).to(device, dtype)
        n = len(images)
        start, whole = ranks.place_of(n)
        generators = [_generator(image, start + i, seed) for i, image in enumerate(images)]
        noise, times, weights = given.get("noise"), given.get("timestep"), given.get("weights")
        uniform = own_strata(generators, start, whole)
        if noise is None:
            noise = torch.cat([draw(model, (1, *images.shape[1:]), g) for g in generators])
        noise = noise.to(device, dtype)
        conditions = self._conditions(given, n, torch.Generator().manual_seed(seed), device, type(model).__name__)
        samples = {"images": images, "noise": noise, "conditions": conditions}
        if times is None:
            times = noising.at(uniform if density is None else density(model, samples).drawn(uniform))
            weights = None if density is None else density(model, samples).balance(noising.shares(times))
        elif "weights" not in given and density is not None:
            if density(model, samples).often is not None:
                raise InputsError(
                    "Timesteps(importance=True) draws the times, and a batch brings its own timestep: leave out one"
                )
            weights = density(model, samples).weight(noising.shares(times))
        weights = None if weights is None else weights.to(device)
        return {**samples, "timestep": times.to(device), "weights": weights}

    def _images(self, given: Mapping[str, Any], model: str) -> Tensor:
        name = next((k for k in IMAGES if k in given), None)
        images = given[name] if name else None
        if not isinstance(images, Tensor):
            raise InputsError(
                f"a batch for {model} has no images; give a tensor of shape (n, {', '.join(map(str, self.image))}), or "
                f"a dict that holds one under one of {', '.join(IMAGES)}"
            )
        if not images.is_floating_point():
            raise InputsError(f"the images of a batch are {images.dtype}; give floats scaled to [-1, 1]")
        channels = 1 if len(self.image) == 2 else 0  # tokens have theirs last, pictures and clips first
        if images.dim() != len(self.image) + 1 or images.shape[channels + 1] != self.image[channels]:
            raise InputsError(
                f"the images of a batch have shape {tuple(images.shape)}; {model} takes (n, "
                f"{', '.join(map(str, self.image))}) (latents, if it works on latents)"
            )
        return images

    def _conditions(
        self, given: Mapping[str, Any], n: int, generator: torch.Generator, device: torch.device, model: str
    ) -> dict[str, Any]:
        held = {**given, **given.get("conditions", {})}
        label = next((k for k in LABELS if k in held), None)
        out: dict[str, Any] = {}
        for name, made in self.conditions(n, generator).items():
            if name in held or (name == "class_labels" and label):
                value = held[name] if name in held else held[str(label)]
                out[name] = pytree.tree_map_only(Tensor, lambda t: t.to(device), value)
            elif name in self.made_up:
                out[name] = made
            else:
                raise InputsError(
                    f"{model} is conditional and a batch has no {name!r}; give dicts such as "
                    f"dict(images=..., {name}=...), or leave data= out and the model draws its own"
                )
        for name in given.get("conditions", {}).keys() - out.keys():  # such as a mask of the padding
            out[name] = pytree.tree_map_only(Tensor, lambda t: t.to(device), held[name])
        return out

    def _beside(self, model: nn.Module, noisy: Tensor, generator: torch.Generator) -> Tensor:
        if not self.beside:
            return noisy
        more = draw(model, (len(noisy), self.beside, *noisy.shape[2:]), generator)
        return torch.cat([noisy, more], 1)

    def predict(self, model: nn.Module, noisy: Tensor, times: Tensor, conditions: Mapping[str, Any]) -> Tensor:
        """The model's answer to noisy samples at times, of their shape.

        Raises:
            InputsError: it is of another shape.
        """
        noisy_in = self._beside(model, noisy, torch.Generator().manual_seed(0))
        answer = model(**{self.entry: noisy_in, "timestep": times, **conditions})
        out: Tensor = answer[0] if isinstance(answer, tuple) else answer.sample
        # Models with a learned variance answer with twice the channels: the mean, then the variance.
        out = out.chunk(2, 1)[0] if out.shape[1] == 2 * noisy.shape[1] else out
        if out.shape != noisy.shape:
            raise InputsError(
                f"{type(model).__name__} answers {tuple(noisy.shape)} with {tuple(out.shape)}, so its loss is not that "
                "of noise prediction: pass data= and loss="
            )
        return out

    def check(self) -> None:
        """Raise `InputsError` where the model has no noise-prediction loss."""
        if self.no_loss:
            raise InputsError(f"{self.no_loss}: pass data= and loss=")


def _bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _generator(image: Tensor, place: int, seed: int) -> torch.Generator:
    """Random numbers of a sample's own."""
    return torch.Generator().manual_seed(zlib.crc32(image.float().cpu().numpy().tobytes(), place) ^ seed)


def _fresh() -> int:
    return int(torch.randint(2**31, ()))


def _named(batch: Any) -> Mapping[str, Any]:
    """A batch as a mapping: a tensor is images, a pair is images and class labels."""
    if isinstance(batch, Tensor):
        return {"images": batch}
    if isinstance(batch, (tuple, list)) and batch:
        return dict(zip(("images", "class_labels"), batch, strict=False))
    return batch if isinstance(batch, Mapping) else {}


@contextlib.contextmanager
def _bar(progress: bool, total: int) -> Iterator[Track]:
    """Within, an iterator that passes steps on and advances one bar of `total` steps (or shows none)."""
    if not progress:
        yield iter
        return
    from rich.progress import Progress

    with Progress() as bar:
        task = bar.add_task("drawing calibration samples", total=total)

        def tick(steps: Iterable[Any]) -> Iterator[Any]:
            for step in steps:
                yield step
                bar.advance(task)

        yield tick
