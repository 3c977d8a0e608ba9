"""The trials of a search: optuna's study, which several processes share through one file, and goes on after a kill.

A process claims a trial under a lock and holds another lock while it measures; the operating system frees both when the
process ends, however it does.  So a trial that is told to run, and whose lock is free, was cut off: it is run again,
with the shares it had.

Trial number n is drawn by a sampler that is seeded anew with (seed, n), from what the trials before it gave: a search
that one process runs is the same whether it was cut off or not.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from fxprune.errors import InputsError, SaveError
from fxprune.planning.plan import Plan
from fxprune.scoring.identity import differences

NAME, LOG, LOCK = "fxprune", "search.log", "search.lock"
STARTUP = 4  # trials before those that the sampler draws from what it knows
PAUSE = 0.2  # seconds between looks at what other processes do
STRIDE = 1_000_003  # between the seeds of samplers of two searches: more than trials of one


@dataclass(frozen=True)
class Claimed:
    """A trial that this process has to run.

    Attributes:
        trial: optuna's.
        shares: what is asked to go, by part.
    """

    trial: Any
    shares: Mapping[str, float]

    @property
    def number(self) -> int:
        """Its place among all."""
        return int(self.trial.number)

    @property
    def seed(self) -> str:
        """What it was made of; "" where the sampler drew it."""
        return str(self.trial.user_attrs.get("seed", ""))


@dataclass(frozen=True)
class Ended:
    """What is known of a trial that has ended: `seed` is the name of what it was made of ("": drawn by the sampler)."""

    number: int
    seed: str
    value: float | None
    error: str
    plan: Plan | None


def cut_of(plan: Plan) -> tuple[object, ...]:
    """All of a plan that the network it leaves depends on."""
    return {g: gone for g, gone in plan.removed.items() if gone}, plan.norm_groups, plan.blocks


class Trials:
    """The trials of one search.

    Args:
        what: all that results depend on, by name; see `fxprune.scoring.identity`.
        most: name of a part -> the largest share of it that may go.
        higher_is_better: whether the largest value is the best.
        sampler: of optuna; None: its tree-structured Parzen estimator, all shares together.
        folder: for the study, the locks and the plans; None: all of it is kept in memory.

    Raises:
        InputsError: optuna is not installed, or the folder holds another search.
        SaveError: it cannot be written to.
    """

    def __init__(
        self,
        what: Mapping[str, str],
        most: Mapping[str, float],
        higher_is_better: bool,
        sampler: Any,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.most, self.sampler, self.seed, self.folder = dict(most), sampler, seed, folder
        self.plans: dict[int, Plan] = {}
        self._held: dict[int, BaseFileLock] = {}
        try:
            if folder is not None:
                (folder / "plans").mkdir(parents=True, exist_ok=True)
                (folder / "running").mkdir(exist_ok=True)
            with self._alone():
                self.study: Any = _study(folder, higher_is_better)
                self._same(what)
        except OSError as e:
            raise SaveError(f"out={str(folder)!r} cannot be written to: {type(e).__name__}: {e}; name another") from e

    def _same(self, what: Mapping[str, str]) -> None:
        """The study says what it is of.

        Raises:
            InputsError: it is of something else.
        """
        was = self.study.user_attrs.get("what")
        if was is None:
            self.study.set_user_attr("what", dict(what))
        elif changed := differences(was, what):
            raise InputsError(f"{self.folder} holds another search: {changed}; name another folder, or remove it")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process claims a trial within."""
        with nullcontext() if self.folder is None else FileLock(self.folder / LOCK):
            yield

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        """Let others take over what was claimed and not told."""
        for lock in self._held.values():
            lock.release()
        self._held.clear()

    def begin(self, seeds: Sequence[tuple[str, Mapping[str, float]]]) -> None:
        """Let the seeds be the first trials."""
        with self._alone():
            there = len(self.study.get_trials(deepcopy=False))
            for name, shares in seeds[there:]:  # a process that ended here has left some out
                self.study.enqueue_trial(dict(shares), user_attrs={"seed": name})

    def claim(self, total: int) -> Claimed | None:
        """A trial for this process, of the first `total`; None where all of them have ended.

        Waits for those of other processes, and takes over what one has left when it ended.
        """
        while True:
            with self._alone():
                trials = self.study.get_trials(deepcopy=False)[:total]
                running = [t for t in trials if t.state.name == "RUNNING"]
                for trial in running:
                    if self._lock(trial.number):
                        return self._drawn(trial.number, trial)
                waiting = next((t.number for t in trials if t.state.name == "WAITING"), len(trials))
                if waiting < total:
                    self._lock(waiting)
                    return self._drawn(waiting, None)
            if not running:
                return None
            time.sleep(PAUSE)

    def _lock(self, number: int) -> bool:
        """Whether a trial is this process's now."""
        if self.folder is None:
            return True
        lock = FileLock(self.folder / "running" / f"{number}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        self._held[number] = lock
        return True

    def _drawn(self, number: int, cut_off: Any) -> Claimed:
        """The shares of a trial: those that it has, others by the sampler."""
        from optuna.trial import Trial

        self.study.sampler = self.sampler or _sampler(self.seed * STRIDE + number)
        trial = self.study.ask() if cut_off is None else Trial(self.study, cut_off._trial_id)
        return Claimed(trial, {name: trial.suggest_float(name, 0.0, most) for name, most in self.most.items()})

    def measured(self, plan: Plan) -> float | None:
        """The value of a trial that cut the same; None where none has one."""
        what = cut_of(plan)
        for trial in self.study.get_trials(deepcopy=False):
            if trial.value is not None and (other := self._plan(trial.number)) is not None and cut_of(other) == what:
                return float(trial.value)
        return None

    def tell(self, claimed: Claimed, plan: Plan | None, value: float | None, error: str) -> None:
        """Keep what a trial gave: its plan and value, or an error."""
        from optuna.trial import TrialState

        if plan is not None:
            self._keep(claimed.number, plan)
        if error:
            claimed.trial.set_user_attr("error", error)
        self.study.tell(claimed.trial, value, state=TrialState.FAIL if error else TrialState.COMPLETE)
        if (lock := self._held.pop(claimed.number, None)) is not None:
            lock.release()

    def _keep(self, number: int, plan: Plan) -> None:
        self.plans[number] = plan
        if self.folder is not None:
            file = self._file(number)
            (fresh := file.with_suffix(".new")).write_text(plan.to_json(), encoding="utf-8")
            os.replace(fresh, file)

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / "plans" / f"{number}.json"

    def ended(self, total: int) -> Iterator[Ended]:
        """The first `total` trials, as far as they have ended."""
        for trial in self.study.get_trials(deepcopy=False)[:total]:
            if trial.state.is_finished():
                attrs = trial.user_attrs
                seed, error = str(attrs.get("seed", "")), str(attrs.get("error", ""))
                yield Ended(trial.number, seed, trial.value, error, self._plan(trial.number))

    def _plan(self, number: int) -> Plan | None:
        if number not in self.plans and self.folder is not None and self._file(number).exists():
            self.plans[number] = Plan.from_json(self._file(number).read_text(encoding="utf-8"))
        return self.plans.get(number)


class _Lock:
    """A lock of the journal that the system frees when its holder ends; optuna's own waits half a minute then."""

    def __init__(self, path: Path) -> None:
        self.lock = FileLock(path)

    def acquire(self) -> bool:
        self.lock.acquire()
        return True

    def release(self) -> None:
        self.lock.release()


def _study(folder: Path | None, higher_is_better: bool) -> Any:
    """The study of a folder, made where there is none.

    Raises:
        InputsError: optuna is not installed, or the file is damaged.
    """
    try:
        import optuna
        from optuna.storages import InMemoryStorage, JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as e:
        raise InputsError('a search needs optuna: pip install "fxprune[search]"') from e
    direction = "maximize" if higher_is_better else "minimize"
    if folder is None:
        with _quiet():
            return optuna.create_study(storage=InMemoryStorage(), study_name=NAME, direction=direction)
    file = folder / LOG
    try:
        lock: Any = _Lock(folder / f"{LOG}.lock")
        storage = JournalStorage(JournalFileBackend(str(file), lock))
        with _quiet():
            return optuna.create_study(storage=storage, study_name=NAME, direction=direction, load_if_exists=True)
    except (ValueError, KeyError, TypeError, AssertionError) as e:
        raise InputsError(f"{file} is damaged ({type(e).__name__}: {e}); remove it, or name another folder") from e


def _sampler(seed: int) -> Any:
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls its joint sampling experimental
        return TPESampler(seed=seed % 2**32, multivariate=True, n_startup_trials=STARTUP)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells nothing within."""
    from optuna import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(before)
