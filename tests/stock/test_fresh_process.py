"""More stock shapes that their libraries save and load where fxprune cannot be imported, and what says why not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from stock_nets import TOKENS, Located
from torch import nn

import fxprune
from fxprune.adapter import find_adapter
from fxprune.graph.modules import as_inputs

TEXT: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 6,
    "vocab_size": 40, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
PATCHED: dict[str, Any] = {
    "sample_size": 4, "patch_size": 2, "in_channels": 4, "out_channels": 8, "num_layers": 10,
    "num_attention_heads": 2, "attention_head_dim": 4,
}  # fmt: skip
MODELS: dict[str, Callable[[], nn.Module]] = {
    "dit": lambda: diffusers.DiTTransformer2DModel(**PATCHED, num_embeds_ada_norm=5),
    "vae": lambda: diffusers.AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=2, sample_size=8,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**TEXT)),
    "qwen": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TEXT, num_key_value_heads=2)),
}  # fmt: skip
# what is saved is loaded by its library in a process where fxprune cannot be imported
FRESH = """
import sys
sys.modules["fxprune"] = None
import torch, diffusers, transformers
from pathlib import Path
LOADS = {
    "dit": lambda at: diffusers.DiffusionPipeline.from_pretrained(at, local_files_only=True).transformer,
    "vae": lambda at: diffusers.AutoencoderKL.from_pretrained(at, local_files_only=True),
    "bert": lambda at: transformers.AutoModelForMaskedLM.from_pretrained(at, local_files_only=True),
    "qwen": lambda at: transformers.AutoModelForCausalLM.from_pretrained(at, local_files_only=True),
}
for at in map(Path, sys.argv[1:]):
    held = torch.load(at / "held.pt", weights_only=False)
    net = LOADS[at.name](at)
    for name, tensor in held["state"].items():
        assert torch.equal(net.state_dict()[name], tensor), name
    with torch.no_grad():
        out = net.eval()(*held["args"], **held["kwargs"])
    torch.save(out if isinstance(out, torch.Tensor) else out[0], at / "out.pt")
"""


@torch.no_grad()
def output(net: nn.Module, args: Any, kwargs: Any) -> torch.Tensor:
    out = net(*args, **kwargs)
    found: torch.Tensor = out if isinstance(out, torch.Tensor) else out[0]
    return found


def saved(name: str, folder: Path) -> torch.Tensor:
    """Less 40 %, by the library's own save; the outputs."""
    torch.manual_seed(0)
    net = MODELS[name]().eval()
    args, kwargs = as_inputs(find_adapter(net).example_inputs(net))
    small = fxprune.prune(net, "magnitude", 0.4, shape="stock", progress=False)
    assert type(small) is type(net)
    assert fxprune.report(small).plan.achieved == pytest.approx(0.4, abs=0.04)
    held: dict[str, Any] = {"args": args, "kwargs": kwargs, "state": small.state_dict()}
    whole: Any = small
    if name == "dit":
        assert set(fxprune.report(small).plan.config) == {"num_layers"}  # its table is computed anew at other widths
        vae = diffusers.AutoencoderKL(norm_num_groups=4, block_out_channels=(4,))
        whole = diffusers.DiTPipeline(small, vae, diffusers.DDIMScheduler())
    whole.save_pretrained(folder)
    if name in ("bert", "qwen"):  # the config alone makes it
        type(small)(small.config).load_state_dict(small.state_dict(), strict=True)
    torch.save(held, folder / "held.pt")
    return output(small, args, kwargs)


def test_libraries_load_what_they_saved_without_fxprune(tmp_path: Path) -> None:
    outs = {name: saved(name, tmp_path / name) for name in MODELS}
    folders = [str(tmp_path / name) for name in MODELS]
    done = subprocess.run([sys.executable, "-c", FRESH, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, mine in outs.items():
        theirs = torch.load(tmp_path / name / "out.pt")
        assert torch.allclose(theirs, mine, atol=1e-5 * float(mine.abs().max()), rtol=1e-4), name


def test_why_a_step_is_no_smaller_is_told() -> None:
    """The entry, the axis and the reason."""
    torch.manual_seed(0)
    with pytest.raises(fxprune.BudgetError) as told:
        fxprune.prune(
            Located().eval(), "magnitude", 0.25, shape=Located, ignore=["up", "head"], example_inputs=TOKENS,
            progress=False,
        )  # fmt: skip
    assert "What can shrink: width (16 of 32) (table[1] becomes 2" in str(told.value)
    assert "computed anew by the constructor: no columns of the old table make the new one, in smaller" in str(
        told.value
    )
