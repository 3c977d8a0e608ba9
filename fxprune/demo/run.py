"""`fxprune demo`: prune the digits DDPM, fine-tune it, save it, load it in a fresh process, and compare.

    OUTPUT/model/        the fine-tuned pipeline, as `fxprune.save` writes it
    OUTPUT/samples.png   what the three models draw from the same noise
    OUTPUT/table.md      the table
    OUTPUT/table.json    its figures, and the settings they come from

It runs on one CPU thread: the same numbers come out however many cores there are.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, SchedulerMixin, UNet2DModel
from diffusers.utils import logging
from rich.console import Console
from rich.progress import Progress

import fxprune
from fxprune.demo import digits
from fxprune.demo.asked import Asked, Wish, granted, row
from fxprune.demo.digits import SampleOptions
from fxprune.demo.measure import SSIM_WINDOW, Measured, latencies, measure, measure_in_fresh_process, ssim
from fxprune.demo.results import Results, column, draw
from fxprune.demo.training import TrainOptions, train
from fxprune.graph.modules import one_thread
from fxprune.scoring.score import DEFAULT_CRITERION
from fxprune.training.setup import accelerate_released

NAMES = ("dense", "pruned", "fine-tuned")
FINE_TUNING = TrainOptions(steps=800, learning_rate=2e-3, warmup=50)


@dataclass(frozen=True)
class DemoOptions:
    """What the demo does.

    Attributes:
        ratio, criterion: see `fxprune.prune`.
        seed: for everything drawn at random.
        training: the recipe of fine-tuning.
        samples: digits that each model draws.
        sampler_steps: of DDIM, for each.
        latency_batch: images in the forward that is timed.
        others: what else to ask the ratio of, beside parameters.
    """

    ratio: float = 0.4
    criterion: str = DEFAULT_CRITERION
    seed: int = 0
    training: TrainOptions = FINE_TUNING
    samples: int = 256
    sampler_steps: int = 50
    latency_batch: int = 64
    others: tuple[str, ...] = ("macs", "latency")


def main(
    output: Path = Path("fxprune-demo"),
    ratio: float = DemoOptions.ratio,
    criterion: str = DemoOptions.criterion,
    steps: int = FINE_TUNING.steps,
    seed: int = DemoOptions.seed,
) -> None:
    """Run the demo, print its table, and write everything into the folder `output`."""
    run(output, DemoOptions(ratio, criterion, seed, replace(FINE_TUNING, steps=steps)), Console())


def run(output: Path, options: DemoOptions, console: Console) -> Results:
    """Do what `main` does, with every option open.

    Raises:
        FxPruneError: for a bad ratio, criterion or number of steps, or a folder that holds other things.
    """
    if options.training.steps < 1:
        raise fxprune.InputsError(f"steps={options.training.steps}: fine-tune for at least one step, such as 800")
    output.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    start = time.perf_counter()
    with one_thread():
        results, same = _compare(output, options, console)
    console.print(results.table())
    console.print(results.wishes())
    seconds = time.perf_counter() - start
    (output / "table.md").write_text(results.markdown(), encoding="utf-8")
    more = {"options": asdict(options), "reloaded_is_identical": same, "seconds": round(seconds, 1)}
    (output / "table.json").write_text(results.to_json(**more), encoding="utf-8")
    console.print(f"{seconds:.0f} s; the pictures are in {output / 'samples.png'}")
    return results


def _compare(output: Path, options: DemoOptions, console: Console) -> tuple[Results, bool]:
    drawing = SampleOptions(options.samples, options.sampler_steps, options.seed)
    dense = digits.load_pipeline()
    console.print(f"Pruning {options.ratio:.0%} of the parameters with {options.criterion}")
    pruned = fxprune.prune(dense, options.criterion, options.ratio, seed=options.seed, progress=not console.quiet)
    wish = Wish(None, options.ratio, options.criterion, options.seed, options.latency_batch)
    made = []
    for of in options.others:
        console.print(f"The same of {'multiply-accumulates' if of == 'macs' else of}")
        made.append(granted(replace(wish, of=of), dense, not console.quiet))
    tuned = DDPMPipeline(unet=_fine_tune(pruned.unet, pruned.scheduler, options, console), scheduler=pruned.scheduler)
    unets = [p.unet.eval() for p in (dense, pruned, tuned)]
    with console.status(f"Drawing {options.samples} digits with each model"):
        found = [measure(unet, dense.scheduler, drawing) for unet in unets]
    with console.status("Saving, and loading in a fresh process"):
        reloaded = measure_in_fresh_process(fxprune.save(tuned, output / "model"), drawing)
    with console.status("Timing"):
        timed = [*unets, *(unet for _, unet in made if unet is not None)]
        seconds = latencies(timed, options.latency_batch)
    asked = _speeds([(row(wish, unets[1], found[1].loss), unets[1]), *made], timed, seconds)
    same = torch.equal(found[2].images, reloaded.images)
    found[2] = reloaded
    columns = tuple(column(n, m, found[0], s) for n, m, s in zip(NAMES, found, seconds, strict=False))
    draw(columns, [m.images for m in found], output / "samples.png")
    return Results(columns, _notes(options, found[0], same), asked), same


def _speeds(
    made: Sequence[tuple[Asked, UNet2DModel | None]], timed: Sequence[UNet2DModel], seconds: Sequence[float]
) -> tuple[Asked, ...]:
    """The rows with how many times as fast as the first network each is."""
    of = {id(unet): seconds[0] / own for unet, own in zip(timed, seconds, strict=True)}
    return tuple(replace(found, speedup=of.get(id(unet))) for found, unet in made)


def _fine_tune(unet: UNet2DModel, scheduler: SchedulerMixin, options: DemoOptions, console: Console) -> UNet2DModel:
    """Return a trained copy with averaged weights."""
    set_seed(options.seed)
    images = digits.load_digits_split().train_images
    with Progress(console=console) as bar, accelerate_released():
        task = bar.add_task("Fine-tuning", total=options.training.steps)
        for step in train(deepcopy(unet), scheduler, images, options.training, Accelerator(cpu=True)):
            bar.update(task, completed=step.number, description=f"Fine-tuning, loss {step.loss:.3f}")
        return step.averaged()


def _notes(options: DemoOptions, dense: Measured, same: bool) -> tuple[str, ...]:
    """How the figures were taken."""
    unlike = ssim(dense.images, dense.images.roll(1, 0))
    equal = "equal those of the model in memory bit for bit" if same else "DIFFER from those of the model in memory"
    return (
        f"Latency: one forward of {options.latency_batch} images on one CPU thread, the median of the seconds that it "
        "ran, the models taking turns.",
        "Held-out loss: noise prediction on digits that no model was trained on.",
        "Predicted speed: by what the plan says of the time, where that was asked for, else at most, by the MACs.",
        f"SSIM to dense: {options.samples} pairs of samples from the same noise ({options.sampler_steps} DDIM steps), "
        f"window of {SSIM_WINDOW}×{SSIM_WINDOW} pixels; dense samples from different noise have {unlike:.3f}.",
        "Confident samples: those that a classifier of digits names with a probability of 0.9 or more.",
        f"Fine-tuned: {options.training.steps} steps of {options.training.batch_size} images; then saved, loaded in a "
        f"fresh process and measured there, where its samples {equal}.",
    )
