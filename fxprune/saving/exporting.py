"""`export`: a model as a file of `torch.export` or ONNX, compared with the model that it was made of."""

from __future__ import annotations

import importlib.util
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.adapter import find_adapter
from fxprune.errors import InputsError, SaveError, VerifyError
from fxprune.graph.modules import as_inputs, evaluating
from fxprune.scoring.batches import batch_size

KINDS = {".pt2": "torch.export", ".onnx": "ONNX"}
CLOSE = 1e-3  # relative error; other kernels, summing in another order, make 1e-6 of float32


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        format: "torch.export" or "ONNX".
        error: largest difference to the model on its example inputs, over the largest output; None: not compared.
        inputs: name -> shape of what it takes.
    """

    format: str
    error: float | None
    inputs: dict[str, str]


def export(model: nn.Module, file: Path, *, batch: int = 1) -> Exported:
    """Write a model for its example inputs, `batch` at a time, in eval mode.

    Raises:
        SaveError: the file's name says no format, or the model cannot be exported.
        VerifyError: the file computes something else.
    """
    if file.suffix not in KINDS:
        raise SaveError(f"{file} names no format: end it with {' or '.join(KINDS)}")
    args, kwargs = _repeated(as_inputs(find_adapter(model).example_inputs(model)), batch)
    try:
        with evaluating(model), torch.no_grad():
            wanted = _tensors(model(*args, **kwargs))
            made = _program(model, args, kwargs, file) if file.suffix == ".pt2" else _onnx(model, args, kwargs, file)
            got = made(args, kwargs) if made is not None else None
    except Exception as e:
        raise SaveError(f"{type(model).__name__} cannot be exported: {type(e).__name__}: {e!s:.400}") from e
    error = None if got is None else _error(got, wanted)
    if error is not None and not error <= CLOSE:
        raise VerifyError(f"{file} computes something else than the model: relative error {error:.1e}")
    shapes = {name: str(tuple(t.shape)) for name, t in _named(model, args, kwargs).items()}
    return Exported(KINDS[file.suffix], error, shapes)


def _program(model: nn.Module, args: Any, kwargs: Any, file: Path) -> Any:
    torch.export.save(torch.export.export(model, args, kwargs, strict=False), file)
    again = torch.export.load(file).module()
    return lambda a, k: _tensors(again(*a, **k))


def _onnx(model: nn.Module, args: Any, kwargs: Any, file: Path) -> Any:
    if importlib.util.find_spec("onnxscript") is None:
        raise InputsError("ONNX needs onnxscript: pip install onnx onnxscript onnxruntime")
    program: Any = torch.onnx.export(model, args, kwargs=kwargs, dynamo=True, verbose=False)
    program.save(str(file))
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    return lambda a, k: [t for t in program(*a, **k) if isinstance(t, Tensor)]


def _repeated(inputs: tuple[Any, Any], batch: int) -> tuple[Any, Any]:
    """The example inputs with their first sample so often."""
    one = batch_size(inputs)
    if batch == one or not one:
        return inputs

    def rows(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != one:
            return leaf
        return leaf[:1].repeat(batch, *(1,) * (leaf.dim() - 1))

    made: tuple[Any, Any] = pytree.tree_map(rows, inputs)
    return made


def _tensors(answer: Any) -> list[Tensor]:
    """The tensors of an answer, whatever they are wrapped in."""
    if isinstance(answer, Tensor):
        return [answer]
    held = answer.values() if hasattr(answer, "values") else answer if isinstance(answer, (tuple, list)) else ()
    return [t for part in held for t in _tensors(part)]


def _error(got: list[Tensor], wanted: list[Tensor]) -> float:
    if [t.shape for t in got] != [t.shape for t in wanted]:
        return float("inf")
    pairs = [(a.double(), b.double()) for a, b in zip(got, wanted, strict=True) if b.numel()]
    return max((float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs), default=0.0)


def _named(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Tensor]:
    bound = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
    found: dict[str, Tensor] = {}
    for name, value in bound.items():
        leaves = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
        found |= {name if len(leaves) == 1 else f"{name}[{i}]": t for i, t in enumerate(leaves)}
    return found
