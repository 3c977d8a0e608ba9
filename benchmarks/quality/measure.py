"""What is measured of a pruned diffusion network, beside its dense original.

loss        of noise prediction on held-out images, whole and by quarter of the noise schedule
ssim        of its samples to the dense network's from the same noise (and labels): the field's consistency measure
frechet     distance between Gaussians fitted to features of samples and of held-out images, in the feature space of a
            small classifier trained on the same data: not the Inception FID
precision, recall   share of samples inside the held-out images' manifold, and the reverse (k nearest neighbours)
confident   share of samples that the classifier assigns with at least 0.9
parameters, macs, images_a_second of one forward, speedup over the dense network in turns with it, activations (bytes,
the most that one forward of a batch holds beside its weights), energy (J an image, where a counter is found)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from data import Split
from diffusers import SchedulerMixin
from diffusion import conditional, noise_errors, sample
from nets import Classifier
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.image import StructuralSimilarityIndexMeasure

BANDS = 4
NEIGHBOURS = 3
CONFIDENT = 0.9


@dataclass(frozen=True)
class Bench:
    """A dense network with everything that its pruned copies are measured by.

    Attributes:
        split: what the network is trained on, images or latents.
        images: the held-out images (n, C, H, W) in [-1, 1].
        noise, labels: what samples are drawn from; `labels` is None for a network without classes.
        decode: makes images of samples.
        steps: of the sampler.
    """

    dense: nn.Module
    scheduler: SchedulerMixin
    split: Split
    classifier: Classifier
    images: Tensor
    noise: Tensor
    labels: Tensor | None
    decode: Callable[[Tensor], Tensor]
    steps: int = 25

    def drawn(self, net: nn.Module) -> Tensor:
        """Images in [-1, 1] from the same noise and labels each time."""
        return self.decode(sample(net, self.scheduler, self.noise, self.labels, self.steps)).clamp(-1, 1)


def losses(net: nn.Module, bench: Bench, repeats: int = 8, first: int = 10**9) -> dict[str, float]:
    """Mean held-out loss (of the first images only), and that of each quarter of the schedule (0: least noise)."""
    labels = bench.split.held_out_labels[:first] if conditional(net) else None
    errors, times = noise_errors(net, bench.scheduler, bench.split.held_out[:first], labels, repeats)
    band = times * BANDS // bench.scheduler.config.num_train_timesteps
    by_band = {f"loss, band {b}": float(errors[band == b].mean()) for b in range(BANDS)}
    return {"loss": float(errors.mean()), **by_band}


@torch.no_grad()
def likeness(images: Tensor, reference: Tensor, bench: Bench) -> dict[str, float]:
    """Of samples to the dense network's samples and to the held-out images."""
    window = 5 if images.shape[-1] < 16 else 11
    metric = StructuralSimilarityIndexMeasure(data_range=2.0, kernel_size=window, sigma=window / 8).to(images.device)
    own, real = (bench.classifier.features(x) for x in (images, bench.images))
    certain = bench.classifier(images).softmax(1).amax(1) >= CONFIDENT
    return {
        "ssim": float(metric(images, reference)),
        "frechet": frechet(own, real),
        "precision": inside(own, real),
        "recall": inside(real, own),
        "confident": float(certain.float().mean()),
    }


def frechet(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (n, d): |μ−ν|² + tr(Σ + T − 2 (ΣT)^½)."""
    a, b = a.double().cpu(), b.double().cpu()
    s, t = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(s @ t).real.clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + s.trace() + t.trace() - 2 * root)


def inside(points: Tensor, manifold: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of points that lie nearer to some point of the manifold than its k-th neighbour there does.

    Source: Kynkäänniemi et al., Improved Precision and Recall Metric, NeurIPS 2019.
    """
    radius = torch.cdist(manifold, manifold).kthvalue(k + 1, dim=1).values
    return float((torch.cdist(points, manifold) <= radius).any(1).float().mean())


@torch.no_grad()
def size(net: nn.Module, of: str, given: dict[str, Any]) -> float:
    """Number of parameters ("params"), or of multiply-accumulates of a forward of these inputs ("macs")."""
    if of == "params":
        return float(sum(p.numel() for p in net.parameters()))
    with FlopCounterMode(display=False) as counter:
        net(**given)
    return counter.get_total_flops() / 2


@torch.no_grad()
def costs(net: nn.Module, bench: Bench, turns: int = 5, speed: bool = True) -> dict[str, float]:
    """Parameters, multiply-accumulates of one image's forward, and memory of a batch's; its speed if wanted."""
    many = _arguments(net, bench, min(64, len(bench.noise)))
    found = {
        "parameters": size(net, "params", {}),
        "macs": size(net, "macs", _arguments(net, bench, 1)),
        "activations": float(_activations(net, many)),
    }
    if not speed:
        return found
    times: dict[str, list[float]] = {"net": [], "dense": []}
    for _ in range(turns):
        for name, model in (("net", net), ("dense", bench.dense)):
            times[name].append(_seconds(model, many))
    rates = len(many["timestep"]) / min(times["net"]), min(times["dense"]) / min(times["net"])
    return {**found, "images_a_second": rates[0], "speedup": rates[1]}


def _activations(net: nn.Module, given: dict[str, Any]) -> int:
    """Bytes that a forward allocates and holds where it holds most."""
    if given["timestep"].is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        net(**given)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        net(**given)
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    return int(max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))))


def energy(work: Callable[[], Any]) -> tuple[Any, float | None]:
    """What `work` returns, and the joules it took by the counters of GPUs (NVML) and CPUs (RAPL); None without any."""
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:  # the extra "energy" is not installed
        return work(), None
    monitor = ZeusMonitor()
    monitor.begin_window("work")
    out = work()
    used = monitor.end_window("work")
    counters = [*used.gpu_energy.values(), *(used.cpu_energy or {}).values()]
    return out, sum(counters) if counters else None


def widths(net: nn.Module, dense: nn.Module) -> dict[str, float]:
    """Share of the output channels that every weight (of two axes or more) has kept, in the network's order."""
    left = dict(net.named_parameters())
    return {n: len(left[n]) / len(p) for n, p in dense.named_parameters() if p.dim() > 1 and n in left}


def _seconds(net: nn.Module, given: dict[str, Any]) -> float:
    cuda = given["sample" if "sample" in given else "hidden_states"].is_cuda
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    net(**given)
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _arguments(net: nn.Module, bench: Bench, n: int) -> dict[str, Any]:
    first = "hidden_states" if "DiT" in type(net).__name__ else "sample"
    times = torch.full((n,), 500, device=bench.noise.device)
    labels = {} if bench.labels is None else {"class_labels": bench.labels[:n]}
    return {first: bench.noise[:n], "timestep": times, **labels}
