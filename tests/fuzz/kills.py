"""Kills, interrupts and full disks at random moments: the old or the new is there whole, and what was cut off goes on.

save, save_pipeline    killed: the folder loads as it was before, or as it was to become
run                    a soft run with checkpoints, killed once or twice: it goes on to the same bits
compare                killed: no row is lost, and the table comes out as without a kill
interrupt              Ctrl-C in `prune` and in a run: the model is as it was, and can be pruned as before
full disk              under save, a run, compare: an error of ours, the old folder whole; with room it goes on
"""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from saved_nets import tiny_unet
from torch import Tensor, nn

import fxprune
from fuzz.moments import Work, apart, at_event, by_clock, by_events, duration, events_of, interrupt, killed, small_disk
from fuzz.trials import RIGHT, Outcome, source
from fxprune.errors import FxPruneError

STEPS, EVERY = 24, 3
X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def net(value: float | None = None) -> nn.Module:
    """A small network, all its weights of one value if that is given."""
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    if value is not None:
        with torch.no_grad():
            for p in made.parameters():
                p.fill_(value)
    return made


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch + 0.1 * torch.randn_like(batch)) - batch[:, :3]).square().mean()


GIVEN: dict[str, Any] = {"example_inputs": X, "data": [X, X + 1, -X], "loss": loss, "progress": False}


# ---- the kinds ------------------------------------------------------------------------------------------------------


def _moment(r: random.Random, work: Work, name: str) -> Callable[[Work], None]:
    """A moment of some work; how long that is is measured once."""
    events, seconds = _measured(name, work)
    if r.random() < 0.5:
        return by_events(r.randrange(1, events + 1))
    return by_clock(r.uniform(0, 1.1 * seconds))


_known: dict[str, tuple[int, float]] = {}


def _measured(name: str, work: Work) -> tuple[int, float]:
    if name not in _known:
        _known[name] = apart(lambda: (events_of(work), duration(work)))
    return _known[name]


def _value(loaded: Any) -> float | None:
    """The one value that all weights have; None where there are several."""
    model = loaded if isinstance(loaded, nn.Module) else loaded.unet
    found = {float(v) for p in model.parameters() for v in p.detach().unique()}
    return found.pop() if len(found) == 1 else None


def save(r: random.Random, root: Path) -> str:
    def load() -> Any:
        return fxprune.load(root / "m", net())

    return _replaced(r, root, "save", lambda value: fxprune.save(net(value), root / "m"), load)


def save_pipeline(r: random.Random, root: Path) -> str:
    def write(value: float) -> None:
        pipeline = _pipeline()
        with torch.no_grad():
            for p in pipeline.unet.parameters():
                p.fill_(value)
        fxprune.save_pipeline(pipeline, root / "m")

    return _replaced(r, root, "save_pipeline", write, lambda: fxprune.load_pipeline(root / "m"))


@functools.cache
def _pipeline() -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler
    from diffusers.utils import logging

    logging.disable_progress_bar()
    small = fxprune.prune(tiny_unet().eval(), "magnitude", 0.3, progress=False)
    return DDPMPipeline(unet=small, scheduler=DDPMScheduler(num_train_timesteps=50))


def _replaced(
    r: random.Random, root: Path, name: str, write: Callable[[float], object], load: Callable[[], Any]
) -> str:
    """A folder of ones is replaced by one of twos, several times."""
    write(1.0)
    moment = _moment(r, lambda: write(1.0), name)
    ended = killed(lambda: write(2.0), moment)
    found = _value(load())
    if found not in (1.0, 2.0) or (ended and found == 1.0):
        return f"holds {found}, ended={ended}"
    write(3.0)  # what was left behind is in nobody's way
    return "" if _value(load()) == 3.0 else "cannot be written again"


def _trained(folder: Path | None = None, model: nn.Module | None = None) -> nn.Module:
    training = fxprune.Training(STEPS, after=4, checkpoint_dir=folder, checkpoint_every=EVERY, ema_decay=0.9)
    return fxprune.prune(model or net(), "taylor", 0.4, scheduler="soft", training=training, **GIVEN)


def _state(model: nn.Module) -> dict[str, Any]:
    return {**model.state_dict(), " loss": torch.from_numpy(fxprune.report(model).history.column("loss"))}


@functools.cache
def _reference() -> dict[str, Any]:
    return apart(lambda: _state(_trained()))


def _differs(state: dict[str, Any]) -> str:
    """How a run came out otherwise than one that nothing happened to."""
    reference = _reference()
    names = [n for n in reference if n not in state or not torch.equal(state[n], reference[n])]
    return f"other bits in {names[:3]}" if names or len(state) != len(reference) else ""


def run(r: random.Random, root: Path) -> str:
    for _ in range(r.choice([1, 1, 2])):
        killed(lambda: _trained(root / "ck"), _moment(r, lambda: _trained(), "run"))
    return _differs(apart(lambda: _state(_trained(root / "ck"))))


def _compared(folder: Path | None) -> list[tuple[Any, ...]]:
    model = net().eval()
    made = fxprune.compare(model, ["magnitude", "random", "taylor"], [0.3, 0.5], seeds=2, out=folder, **GIVEN)
    return [(row.criterion, row.ratio, row.seed, row.loss, row.error) for row in made.rows]


def compare(r: random.Random, root: Path) -> str:
    work = lambda: _compared(root / "c")  # noqa: E731
    killed(work, _moment(r, lambda: _compared(None), "compare"))
    file = root / "c" / "compare.csv"
    lines = file.read_text().splitlines(keepends=True)[2:] if file.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if apart(lambda: _compared(root / "c")) != _tabled():
        return "another table"
    lost = [line for line in whole if line not in file.read_text()]
    return f"rows are lost: {lost}" if lost else ""


@functools.cache
def _tabled() -> list[tuple[Any, ...]]:
    return apart(lambda: _compared(None))


def interrupted(r: random.Random, root: Path) -> str:
    """Ctrl-C; afterwards the very model is pruned, and gives what it would have given."""
    once = lambda m: fxprune.prune(m, "taylor", 0.4, **GIVEN)  # noqa: E731
    work = r.choice([once, lambda m: _trained(None, m)])
    events, _ = _measured(f"interrupted {work is once}", lambda: work(net()))
    number = r.randrange(1, events + 1)
    _reference()
    return apart(lambda: _interrupted(work, number))


def _interrupted(work: Callable[[nn.Module], object], number: int) -> str:
    work(net())  # what is imported when it is first needed is there: a module that is cut off stays half made
    model = net()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    try:
        with at_event(number, interrupt):
            work(model)
    except KeyboardInterrupt:
        pass
    after = model.state_dict()
    if list(after) != list(before) or not all(torch.equal(after[n], before[n]) for n in before):
        return "the model has changed"
    if not model.training or any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
        return "mode or hooks have changed"
    return _differs(_state(_trained(None, model)))


def full_disk(r: random.Random, root: Path) -> str:
    """A disk that has room for some of it."""
    _reference()
    _tabled()
    with small_disk(2**20) as disk:
        return "" if disk is None else apart(lambda: _filled(r, disk))


def _filled(r: random.Random, disk: Path) -> str:
    fxprune.save(net(1.0), disk / "m")
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - 4096 * r.randrange(40))))
    kind = r.choice(["save", "run", "compare"])
    try:
        if kind == "save":
            fxprune.save(net(2.0), disk / "m")
        elif kind == "run":
            _trained(disk / "ck")
        else:
            _compared(disk / "c")
    except FxPruneError as e:
        if "o space left" not in f"{e}":
            return f"{kind}: {e}"
    if (found := _value(fxprune.load(disk / "m", net()))) not in (1.0, 2.0):
        return f"{kind}: the folder holds {found}"
    (disk / "ballast").unlink()
    if kind == "run":
        return _differs(_state(_trained(disk / "ck")))
    return "" if kind == "save" or _compared(disk / "c") == _tabled() else "another table"


KINDS: dict[str, Callable[[random.Random, Path], str]] = {
    "save": save, "save_pipeline": save_pipeline, "run": run, "compare": compare, "interrupt": interrupted,
    "full disk": full_disk,
}  # fmt: skip


def campaign(numbers: Iterable[int], seed: int) -> Iterator[Outcome]:
    """A kill, an interrupt or a full disk a number."""
    warnings.simplefilter("ignore")
    for number in numbers:
        r = source(seed, number)
        kind = r.choice(sorted(KINDS))
        root = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            note = KINDS[kind](r, root)
            outcome = "lost" if note else RIGHT
        except Exception as e:  # noqa: BLE001 - that is what is looked for
            outcome, note = "raw", f"{type(e).__name__}: {e!s:.600}"
        finally:
            shutil.rmtree(root, ignore_errors=True)
        yield Outcome(number, kind, outcome, note)
