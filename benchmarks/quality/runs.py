"""One run of sweep.py: prune a trained network by a method, train it by a recipe, measure it."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from cases import Case, Feed
from methods import METHODS, Method
from recipes import EVERY
from torch import nn
from training import batches

import fxprune
from fxprune import Training
from fxprune.training.distillation import Teacher
from fxprune.training.dropout import dropping, to_train
from fxprune.training.options import Objective, set_rate

POINTS = 10  # of the curve
Row = dict[str, Any]


def run(case: Case, row: Row, bfloat16: bool = False) -> Row:
    """The row, with all figures of the small network ("dense": of the dense one)."""
    method = METHODS.get(row["method"])
    start = time.perf_counter()
    small, told = case.dense, Row()
    if method is not None:
        small, told = (_by_library if method.whole else _by_loop)(case, method, row, bfloat16)
    seconds = time.perf_counter() - start
    return {
        **row,
        **case.measured(small.eval()),
        **told,
        "run seconds": seconds,
        "device": torch.cuda.get_device_name() if _cuda(case) else platform.machine() + " CPU",
        "torch": torch.__version__,
        "training dtype": "bfloat16" if bfloat16 else "float32",
    }


def _cuda(case: Case) -> bool:
    return case.split.train.is_cuda


def _by_library(case: Case, method: Method, row: Row, bfloat16: bool) -> tuple[nn.Module, Row]:
    """One call; the recipe "default" adds the number of steps and nothing else."""
    changes = {**EVERY[row["recipe"]], **({"mixed_precision": "bf16"} if bfloat16 else {})}
    how: Row = {"training": Training(row["steps"], **changes)} if changes else {"steps": row["steps"]}
    if not case.own:
        how |= {"loss": case.loss, "example_inputs": case.example()}
    given = {"scheduler": method.scheduler, "criterion": method.criterion, "timesteps": method.timesteps}
    how |= {name: value for name, value in given.items() if value is not None}
    feed = Feed(case.split, row["batch"], case.labelled)
    small = fxprune.prune(
        case.given, ratio=row["ratio"], of=row["of"], data=feed, seed=row["seed"], progress=False, **how
    )
    return (small if isinstance(small, nn.Module) else small.unet), {"curve": []}


def _by_loop(case: Case, method: Method, row: Row, bfloat16: bool) -> tuple[nn.Module, Row]:
    """The same loop for every method, of this library or not; it does what `fxprune.prune` does with the recipe."""
    training = Training(row["steps"], **EVERY[row["recipe"]])
    torch.manual_seed(row["seed"])
    feed = batches(case.split.train, case.split.train_labels, row["batch"], case.split.mirrored)
    data = [next(feed) for _ in range(2)]
    net, pruner = _cut(case, method, row, data)
    at_once = case.watched(net.eval())
    teacher = None
    if training.distillation:
        teacher = Teacher(deepcopy(case.dense), None, training.distillation)
    to_train(net, training.drops)
    objective, curve = Objective(net, case.loss, teacher), []
    optimizer = training.made(net.parameters())
    for step in range(training.steps):
        set_rate(optimizer, training.rate(step))
        with dropping(training.drops):
            with torch.autocast("cuda" if _cuda(case) else "cpu", torch.bfloat16, enabled=bfloat16):
                value = objective(next(feed))
            value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), training.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        if pruner is not None:
            with _own_numbers(case):
                pruner.step(loss=value)
                if pruner.done:
                    net, pruner = pruner.finish(optimizer), None
                    to_train(net, training.drops)
                    objective = Objective(net, case.loss, teacher)
        if (step + 1) % max(1, training.steps // POINTS) == 0:
            with _own_numbers(case):
                curve.append((step + 1, case.watched(net.eval())))
                to_train(net, training.drops)
    return net, {"loss before training": at_once, "curve": curve}


def _cut(case: Case, method: Method, row: Row, data: list[Any]) -> tuple[nn.Module, Any]:
    """The network that trains: small, or still dense with what prunes it while it trains."""
    net, ratio, of, seed = deepcopy(case.dense), row["ratio"], row["of"], row["seed"]
    if method.cut is not None:
        return method.cut(net, ratio, of, data, case.loss, seed), None
    how: Row = {"of": of, "data": data, "seed": seed, "progress": False}
    how["loss"] = case.loss if method.gamma is None else partial(case.loss, gamma=method.gamma)
    if not case.own:
        how["example_inputs"] = case.example()
    if method.scheduler is None:
        return fxprune.prune(net, method.criterion, ratio, scope=method.scope, **how), None
    pruner = fxprune.Pruner(net, method.scheduler, method.criterion, ratio, steps=row["steps"], **how)
    return net, pruner


@contextlib.contextmanager
def _own_numbers(case: Case) -> Iterator[None]:
    """Within, random numbers are drawn that the training does not miss."""
    with torch.random.fork_rng(devices=[case.split.train.device] if _cuda(case) else []):
        yield
