"""Prune by 40 % with legal_for=, then quantise: bytes and error of outputs, beside the dense model's.

    python benchmarks/quantize.py [FORMAT ...]

Formats of torchao, bitsandbytes, optimum-quanto and ONNX Runtime (static int8, calibrated on other inputs); those whose
library is not installed are left out.  Random weights, CPU; the error is |quantised - own| / |own| over the outputs.
It makes the table of docs/quantize.md.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

import fxprune

Inputs = dict[str, Any]
Measured = tuple[Tensor, int]  # outputs, bytes


def dit() -> tuple[Any, Callable[[], Inputs]]:
    net = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=32, num_layers=2, sample_size=8, in_channels=4, out_channels=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    return net, lambda: {
        "hidden_states": torch.randn(4, 4, 8, 8), "timestep": torch.arange(4), "class_labels": torch.arange(4)
    }  # fmt: skip


def unet() -> tuple[Any, Callable[[], Inputs]]:
    net = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=16, attention_head_dim=4, cross_attention_dim=64,
    )  # fmt: skip
    return net, lambda: {
        "sample": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([5, 400]),
        "encoder_hidden_states": torch.randn(2, 7, 64),
    }  # fmt: skip


def vit() -> tuple[Any, Callable[[], Inputs]]:
    net = timm.create_model("vit_tiny_patch16_224", depth=3, num_classes=64, img_size=64)
    return net, lambda: {"x": torch.randn(4, 3, 64, 64)}


@torch.no_grad()
def outputs(net: Any, inputs: Inputs) -> Tensor:
    out = net(**inputs)
    return out if isinstance(out, Tensor) else out[0]


def size(net: nn.Module) -> int:
    torch.save(net.state_dict(), buffer := io.BytesIO())
    return buffer.tell()


# ---- formats ------------------------------------------------------------------------------------------------------


def torchao(config: Callable[[Any], Any]) -> Callable[..., Measured]:
    def made(net: nn.Module, draw: Callable[[], Inputs], inputs: Inputs) -> Measured:
        import torchao.quantization as library
        from torchao.quantization.granularity import PerGroup

        library.quantize_(net, config((library, PerGroup)))
        return outputs(net, inputs), size(net)

    return made


def bitsandbytes(make: Callable[[Any, nn.Linear], nn.Module]) -> Callable[..., Measured]:
    def made(net: nn.Module, draw: Callable[[], Inputs], inputs: Inputs) -> Measured:
        import bitsandbytes as library

        for path, module in list(net.named_modules()):
            if type(module) is nn.Linear:
                owner, _, leaf = path.rpartition(".")
                layer = make(library.nn, module)
                layer.load_state_dict(module.state_dict())
                setattr(net.get_submodule(owner), leaf, layer.to("cpu"))
        return outputs(net, inputs), size(net)

    return made


def quanto(kind: str) -> Callable[..., Measured]:
    def made(net: nn.Module, draw: Callable[[], Inputs], inputs: Inputs) -> Measured:
        from optimum import quanto as library

        library.quantize(net, weights=getattr(library, kind))
        library.freeze(net)
        return outputs(net, inputs), size(net)

    return made


def onnxruntime(net: nn.Module, draw: Callable[[], Inputs], inputs: Inputs) -> Measured:
    import onnxruntime as library
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Inputs] = iter([draw() for _ in range(4)])

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {k: v.numpy() for k, v in batch.items()}

    with tempfile.TemporaryDirectory() as folder:
        own, small = (str(Path(folder) / name) for name in ("own.onnx", "int8.onnx"))
        torch.onnx.export(net, (), kwargs=inputs, dynamo=True, verbose=False).save(own)
        quantize_static(own, small, Reader(), per_channel=True, weight_type=QuantType.QInt8)
        session = library.InferenceSession(small, providers=["CPUExecutionProvider"])
        names = {i.name for i in session.get_inputs()}
        found = session.run(None, {k: v.numpy() for k, v in inputs.items() if k in names})
        return torch.from_numpy(found[0]), Path(small).stat().st_size


def int8_of_bitsandbytes(layers: Any, old: nn.Linear) -> nn.Module:
    return layers.Linear8bitLt(old.in_features, old.out_features, old.bias is not None, has_fp16_weights=False)


def nf4_of_bitsandbytes(layers: Any, old: nn.Linear) -> nn.Module:
    return layers.Linear4bit(old.in_features, old.out_features, old.bias is not None, quant_type="nf4")


# format -> the library that must be there, `legal_for`, and what quantises
FORMATS: dict[str, tuple[str, str, Callable[..., Measured]]] = {
    "torchao int8": ("torchao", "int8", torchao(lambda m: m[0].Int8WeightOnlyConfig())),
    "torchao int4-g32": (
        "torchao",
        "int4-g32",
        torchao(lambda m: m[0].IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=m[1](32))),
    ),
    "bitsandbytes int8": ("bitsandbytes", "int8", bitsandbytes(int8_of_bitsandbytes)),
    "bitsandbytes nf4": ("bitsandbytes", "nf4", bitsandbytes(nf4_of_bitsandbytes)),
    "quanto qint8": ("optimum", "int8", quanto("qint8")),
    "quanto qint4": ("optimum", "int4-g32", quanto("qint4")),
    "ONNX Runtime static int8": ("onnxruntime", "int8", onnxruntime),
}


def measured(net: nn.Module, draw: Callable[[], Inputs], inputs: Inputs, how: Callable[..., Measured]) -> str:
    own = outputs(net, inputs)
    torch.manual_seed(1)  # the same batches to calibrate on
    out, held = how(copy.deepcopy(net), draw, inputs)
    return f"{held / 1e3:,.0f}, {float((out - own).norm() / own.norm()):.4f}"


def main(names: list[str]) -> None:
    print("| model | format | dense: kB, error | pruned: kB, error | layers not taken |\n|---|---|---|---|---|")
    for make in (dit, unet, vit):
        torch.manual_seed(0)
        net, draw = make()
        inputs = draw()
        with torch.no_grad():
            for p in net.eval().parameters():
                p.add_(0.02 * torch.randn(p.shape))
        pruned: dict[str, Any] = {}
        for name in names or FORMATS:
            library, legal_for, how = FORMATS[name]
            if importlib.util.find_spec(library) is None:
                continue
            if legal_for not in pruned:
                pruned[legal_for] = fxprune.prune(net, "magnitude", 0.4, legal_for=legal_for, progress=False)
            before, after = (measured(m, draw, inputs, how) for m in (net, pruned[legal_for]))
            left = len(fxprune.report(pruned[legal_for]).misfits)
            print(f"| {make.__name__} | {name} | {before} | {after} | {left} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    main(sys.argv[1:])
