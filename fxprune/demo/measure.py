"""What the demo measures of a model, in this process or, of a saved one, in a fresh one.

python -m fxprune.demo.measure FOLDER OUT.npz '{"count": 256, ...}'
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics.image import StructuralSimilarityIndexMeasure

import fxprune
from fxprune.demo import digits
from fxprune.demo.digits import SampleOptions
from fxprune.planning.costs.stopwatch import take_turns

SSIM_WINDOW = 5  # pixels; torchmetrics' usual window of 11 does not fit into 8x8


@dataclass(frozen=True)
class Measured:
    """Figures of one model, and the digits it drew.

    Attributes:
        parameters: how many it has.
        macs: multiply-accumulates of one forward of one image, attention's products included.
        loss: of noise prediction, on the held-out digits.
        images: what it draws from seeded noise.
    """

    parameters: int
    macs: int
    loss: float
    images: Tensor


def measure(unet: UNet2DModel, scheduler: SchedulerMixin, options: SampleOptions) -> Measured:
    """Measure a model and let it draw."""
    held_out = digits.load_digits_split().held_out_images
    return Measured(
        parameters=sum(p.numel() for p in unet.parameters()),
        macs=count_macs(unet),
        loss=digits.noise_loss(unet, scheduler, held_out),
        images=digits.sample(unet, scheduler, options),
    )


def measure_in_fresh_process(folder: Path, options: SampleOptions) -> Measured:
    """Load a saved pipeline in a new Python process and measure it there, with as many threads as here.

    Raises:
        SaveError: where that process fails.
    """
    with TemporaryDirectory() as scratch:
        out = Path(scratch) / "measured.npz"
        request = json.dumps(asdict(options) | {"threads": torch.get_num_threads()})
        command = [sys.executable, "-m", "fxprune.demo.measure", str(folder), str(out), request]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise fxprune.SaveError(f"the fresh process that should load {folder} failed:\n{done.stderr}")
        with np.load(out) as held:
            images = torch.from_numpy(held["images"])
            return Measured(int(held["parameters"]), int(held["macs"]), float(held["loss"]), images)


def count_macs(unet: UNet2DModel) -> int:
    """Count multiply-accumulates of one forward of one image, as PyTorch's own counter sees them."""
    config = unet.config
    image = torch.zeros(1, config.in_channels, config.sample_size, config.sample_size)
    # The math kernel: the counter passes over the fused attention of the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        unet(image, 0)
    return int(counter.get_total_flops()) // 2


def latencies(unets: Sequence[UNet2DModel], batch: int, repeats: int = 30) -> list[float]:
    """Return the median seconds of one forward of each model; the models take turns, so that noise hits all alike.

    On one thread they are those that the thread runs: what else the machine does counts as little as it can.
    """
    config = unets[0].config
    images = torch.zeros(batch, config.in_channels, config.sample_size, config.sample_size)
    return [median(own) for own in take_turns([partial(u, images, 500) for u in unets], images.device, repeats)]


def ssim(images: Tensor, others: Tensor) -> float:
    """Mean structural similarity of pairs of images: 1 for equal ones; a uniform window of 5x5 pixels."""
    compare = StructuralSimilarityIndexMeasure(gaussian_kernel=False, kernel_size=SSIM_WINDOW, data_range=2.0)
    return float(compare(images, others))


def _main(folder: str, out: str, request: str) -> None:
    options = json.loads(request)
    torch.set_num_threads(options.pop("threads"))
    pipeline = fxprune.load(folder)
    found = measure(pipeline.unet, pipeline.scheduler, SampleOptions(**options))
    np.savez(out, parameters=found.parameters, macs=found.macs, loss=found.loss, images=found.images.numpy())


if __name__ == "__main__":
    _main(*sys.argv[1:])
