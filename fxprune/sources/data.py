"""`open_data`: a user's files as batches for a model, and the loss they are for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fxprune.adapter import Adapter, Files, find_adapter
from fxprune.arguments import COUNT, FLAG, MODEL, PATH, takes
from fxprune.errors import InputsError
from fxprune.graph.modules import as_inputs, evaluating
from fxprune.saving.save import PathLike
from fxprune.scoring.context import Loss


class Data(NamedTuple):
    """Batches, and `loss(model, batch) -> scalar`: what `data=` and `loss=` of `fxprune.prune` take."""

    batches: Iterable[Any]
    loss: Loss


@takes(model=MODEL, path=PATH, batch=COUNT, shuffle=FLAG, tokenizer=PATH.or_none)
def open_data(
    model: Any,
    path: PathLike,
    *,
    batch: int = 16,
    shuffle: bool = False,
    seed: int = 0,
    tokenizer: PathLike | None = None,
) -> Data:
    """Files as batches of the form that a model takes, with the loss that goes with them.

    Args:
        model: the model or pipeline that will see them.
        path: for a classifier of images a folder of images in sub-folders, one a class; for a diffusion model a folder
            of images, with captions (metadata.jsonl, or a .txt beside each) where its pipeline reads prompts, or in
            sub-folders where it takes classes; for a language model a text file, or a folder of .txt files.
        batch: samples a batch.
        shuffle: another order at each pass, from torch's generator, to train with; else one order.
        seed: what that order is drawn from.
        tokenizer: a tokenizer's folder; None: that of the model's own folder.

    Returns:
        A pair: batches, and `loss(model, batch)`.

    Raises:
        InputsError: the family reads no such files; says what they would have to be.

    Example:
        >>> import fxprune
        >>> net = fxprune.open_model("torchvision:squeezenet1_1", weights="random")
        >>> fxprune.open_data(net, "no-such-folder")
        Traceback (most recent call last):
        ...
        fxprune.errors.InputsError: there is no folder no-such-folder; name one with images
    """
    adapter = find_adapter(model)
    reader = None if tokenizer is None else os.fspath(tokenizer)
    batches, loss = adapter.batches(model, Files(Path(path), batch, shuffle, seed, reader))
    loss = loss or (adapter.training_loss(model) if shuffle else adapter.loss_of(model, seed))
    if loss is None:
        raise InputsError(f"fxprune knows no loss for a {type(model).__name__}: pass data= and loss= in Python")
    return Data(batches, loss)


def draws(model: Any) -> bool:
    """Whether the family of a model makes its own data, so that none is needed."""
    return type(find_adapter(model)).calibration is not Adapter.calibration


def classes_of(model: nn.Module) -> int:
    """How many classes a classifier of images tells apart: the last axis of what it answers.

    Raises:
        InputsError: it answers with anything but one row of scores an image.
    """
    args, kwargs = as_inputs(find_adapter(model).example_inputs(model))
    with torch.no_grad(), evaluating(model):
        answer = model(*args, **kwargs)
    return _scores(model, answer).shape[1]


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of a classifier, in float32.

    Args:
        batch: dict(images (n, C, H, W), labels (n,)).
    """
    at = next(model.parameters())
    scores = _scores(model, model(batch["images"].to(at.device, at.dtype)))
    return nn.functional.cross_entropy(scores.float(), batch["labels"].to(at.device))


def _scores(model: nn.Module, answer: Any) -> Tensor:
    answer = answer[0] if isinstance(answer, tuple) and answer else answer  # auxiliary heads come after
    if not isinstance(answer, Tensor) or answer.dim() != 2:
        told = (
            f"a tensor of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
        )
        raise InputsError(
            f"{type(model).__name__} answers with {told}, not with a row of class scores an image: pass data= and "
            "loss= in Python, or use a criterion that needs no data, such as magnitude"
        )
    return answer
