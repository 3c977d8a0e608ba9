"""Pruned models go where dense ones go: torch.export, ONNX (run by onnxruntime) and torch.compile, against eager."""

from __future__ import annotations

import io
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from fxprune.adapter import find_adapter

pytest.importorskip("diffusers")
from diffusion_nets import model, smaller, steady_images

NAMES = ["ddpm", "sdxl", "dit", "flux", "tiny-vae"]


@pytest.fixture(scope="module", params=NAMES)
def net(request: pytest.FixtureRequest) -> Any:
    """A pruned model."""
    return smaller(model(request.param))


def inputs(net: Any, n: int = 1) -> dict[str, Any]:
    """Example inputs, n times along the batch, the samples all different."""
    if type(net).__name__ == "AutoencoderTiny":
        return {"sample": steady_images(net, n)}
    example: dict[str, Any] = dict(find_adapter(net).example_inputs(net))  # type: ignore[arg-type]
    return {k: _batch(k, v, n) for k, v in example.items()}


def _batch(name: str, value: Any, n: int) -> Any:
    if isinstance(value, dict):
        return {k: _batch(k, v, n) for k, v in value.items()}
    if name in ("img_ids", "txt_ids"):
        return value
    rows = value.repeat(n, *(1,) * (value.dim() - 1))
    return (
        rows + torch.randn(rows.shape, generator=torch.Generator().manual_seed(0)) if n > 1 and rows.dim() > 1 else rows
    )


def eager(net: Any, given: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        out: Tensor = net(**given, return_dict=False)[0]
    return out


def close(got: Tensor, wanted: Tensor) -> None:
    """Equal up to what other kernels, summing in another order, make of float32."""
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def free_batch(net: Any) -> dict[str, Any]:
    """Dynamic shapes that leave the batch open."""

    def shape(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: shape(k, v) for k, v in value.items()}
        return None if name in ("img_ids", "txt_ids") else {0: torch.export.Dim.AUTO}

    return {k: shape(k, v) for k, v in inputs(net).items()} | {"return_dict": None}


def test_torch_export_captures_a_pruned_model_for_any_batch(net: Any) -> None:
    given = inputs(net, 2) | {"return_dict": False}
    program = torch.export.export(net, (), given, dynamic_shapes=free_batch(net), strict=False)
    for n in (2, 3):
        close(program.module()(**inputs(net, n), return_dict=False)[0], eager(net, inputs(net, n)))


@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_computes_what_eager_does(net: Any) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    given = inputs(net, 2)
    program = torch.onnx.export(net, (), kwargs=given | {"return_dict": False}, dynamo=True, verbose=False)
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    try:
        session = runtime.InferenceSession(file.getvalue())
    except runtime.capi.onnxruntime_pybind11_state.NotImplemented as e:
        pytest.skip(f"this onnxruntime lacks an op, of the dense model too: {e}")
    flat = torch.utils._pytree.tree_leaves(given)
    names = [i.name for i in session.get_inputs()]
    assert len(names) == len(flat)
    (out,) = session.run(None, {k: v.numpy() for k, v in zip(names, flat, strict=True)})
    close(torch.from_numpy(out), eager(net, given))


def test_dynamo_captures_a_pruned_model_whole(net: Any) -> None:
    if torch.__version__ < "2.12" and type(net).__name__ == "UNet2DModel":
        pytest.skip("this torch compiles no UNet2DModel, the dense one neither")
    torch.compiler.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    close(eager(compiled, inputs(net)), eager(net, inputs(net)))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_torch_compile_runs_a_pruned_model() -> None:
    torch.compiler.reset()
    net = smaller(model("tiny-vae"))
    close(eager(torch.compile(net), inputs(net)), eager(net, inputs(net)))
