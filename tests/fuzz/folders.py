"""Mutated folders of several families: each is loaded as it was, or refused by an error of ours; nothing of it runs.

Wrong is also a folder that loads with other numbers than were saved, where its checksums are still there.
"""

from __future__ import annotations

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from saved_nets import IDS, Plain, tiny_unet
from torch import nn

import fxprune
from fuzz import sandbox
from fuzz.mutations import MARK, copied, mutate
from fuzz.trials import REFUSED, RIGHT, Outcome, source
from fxprune.errors import FxPruneError
from fxprune.saving import isolation, pipelines
from fxprune.saving.header_reading import read

STEERS = "\x1b\x07\u202e\x9b\u2028"


# ---- families -------------------------------------------------------------------------------------------------------


def _unet() -> nn.Module:
    return fxprune.prune(tiny_unet().eval(), "magnitude", 0.3, progress=False)


def _bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    return fxprune.prune(BertModel(config).eval(), "magnitude", 0.2, example_inputs=(IDS,), progress=False)


def _pipeline() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(unet=_unet(), scheduler=DDPMScheduler(num_train_timesteps=50))


def _plain(**options: Any) -> nn.Module:
    return fxprune.prune(Plain().eval(), "random", 0.5, example_inputs=(IDS,), progress=False, **options)


class Stream(nn.Module):
    """A residual network, of which a block goes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(8, 16), nn.Linear(16, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16)) for _ in range(3)
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def _blocks() -> nn.Module:
    given: dict[str, Any] = {"example_inputs": torch.ones(2, 8), "progress": False}
    return fxprune.prune(Stream().eval(), "magnitude", 0.3, granularity="both", **given)


def _saved(make: Callable[[], Any], **options: Any) -> Callable[[Path], None]:
    return lambda folder: fxprune.save(make(), folder, **options) and None


# name: what writes the folder, what reads it
FAMILIES: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "unet": (_saved(_unet), fxprune.load),
    "bert": (_saved(_bert), fxprune.load),
    "pipeline": (_saved(_pipeline), fxprune.load_pipeline),
    "plain": (_saved(_plain), lambda folder: fxprune.load(folder, Plain)),
    "shards": (_saved(_plain, max_shard_size=2000), lambda folder: fxprune.load(folder, Plain)),
    "blocks": (_saved(_blocks), lambda folder: fxprune.load(folder, Stream)),
    "diffusers": (lambda folder: _pipeline_of_diffusers().save_pretrained(folder), pipelines.read_folder),
}


def _pipeline_of_diffusers() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler(num_train_timesteps=50))


@functools.cache
def bases() -> Path:
    """A folder with a saved folder of each family; loaded once, so that what a first load imports is there."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    torch.manual_seed(0)
    for name, (write, load) in FAMILIES.items():
        write(root / name)
        load(root / name)
    with isolation.isolated():  # its hook comes before ours, which sees what that one lets through
        pass
    return root


# ---- trials ---------------------------------------------------------------------------------------------------------


def campaign(numbers: Iterable[int], seed: int) -> Iterator[Outcome]:
    """A mutated folder a number."""
    root = bases()
    watch: list[sandbox.Watch] = []

    def trial(number: int) -> Outcome:
        return _tried(number, seed, root, watch[0])

    def prepare() -> None:
        watch.append(sandbox.Watch())
        warnings.simplefilter("ignore")

    for outcome in sandbox.trials(list(numbers), trial, prepare):
        told = f"{outcome.note} {described(outcome.number, seed, root)}" if outcome.kind == "ended" else outcome.note
        yield Outcome(outcome.number, outcome.kind, outcome.outcome, told[:2000])


def described(number: int, seed: int, root: Path) -> str:
    """The family of a number, and what is done to it."""
    _, name, told = _mutated(number, seed, root)
    return f"{name}: {told}"


def _mutated(number: int, seed: int, root: Path) -> tuple[Path, str, str]:
    r = source(seed, number)
    name = r.choice(sorted(FAMILIES))
    folder = copied(root / name, root / "tried")
    return folder, name, mutate(folder, r)


def _tried(number: int, seed: int, root: Path, watch: sandbox.Watch) -> Outcome:
    folder, name, told = _mutated(number, seed, root)
    before = sandbox.restart()
    watch.seen, watch.folder = [], str(folder)
    text, outcome = _loaded(folder, name, root)
    watch.folder = ""
    grown = sandbox.grown() - before
    if watch.seen or (folder / MARK).exists():
        outcome, text = "executed", f"{watch.seen[:3]} {text}"
    elif grown > sandbox.MEMORY:
        outcome, text = "memory", f"{grown / 2**20:.0f} MB {text}"
    elif set(text) & set(STEERS):
        outcome = "escapes"
    return Outcome(number, name, outcome, f"{told[:600]} -> {text[:600]!r}" if outcome != RIGHT else "")


def _loaded(folder: Path, name: str, root: Path) -> tuple[str, str]:
    """What is told of a folder, and the outcome of loading it."""
    try:
        text = "" if name == "diffusers" else repr(read(folder))
        made = FAMILIES[name][1](folder)
        text += repr(fxprune.report(made)) if isinstance(made, nn.Module) else ""
    except FxPruneError as e:
        return str(e), REFUSED
    except BaseException as e:  # noqa: BLE001 - that is what is looked for
        return f"{type(e).__name__}: {e!s:.300}", "raw"
    if name != "diffusers" and read(folder).checksums and not _same(made, FAMILIES[name][1](root / name)):
        return "other numbers than were saved", "wrong"
    return text, RIGHT


def _same(one: Any, other: Any) -> bool:
    nets = [m if isinstance(m, nn.Module) else m.unet for m in (one, other)]
    a, b = (net.state_dict() for net in nets)
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)
