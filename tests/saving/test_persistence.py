"""Saved folders in the world: diffusers' own loader, shards, model cards, LoRA, other weights, and a kill."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusion_nets import PIPELINES, everything, model
from torch import nn

import fxprune
from fxprune import SaveError
from fxprune.adapter import find_adapter

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:.*(__array__|steps_offset|outdated).*")


def smaller(name: str) -> Any:
    """A pipeline of the table with a pruned denoiser."""
    case = PIPELINES[name]
    return case.around(fxprune.prune(model(case.net), "magnitude", 0.4, progress=False))


@pytest.fixture(scope="module")
def sd1() -> Any:
    return smaller("sd1")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, sd1: Any) -> Path:
    """The folder of `sd1`, its weights in several files; tests copy before they change anything."""
    return fxprune.save_pipeline(sd1, tmp_path_factory.mktemp("saved") / "sd1", max_shard_size="400KB")


def listing(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- diffusers' own loader ------------------------------------------------------------------------------------------

LOADING = """
import sys
{line}
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])
print(type(pipeline).__name__, type(pipeline.unet).__name__, sum(p.numel() for p in pipeline.unet.parameters()))
"""


def in_a_new_process(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=False)


def test_diffusers_loads_the_folder_after_one_import(saved: Path, sd1: Any) -> None:
    done = in_a_new_process(LOADING.format(line="import fxprune"), str(saved))
    assert done.returncode == 0, done.stderr
    size = sum(p.numel() for p in sd1.unet.parameters())
    assert done.stdout.split() == ["StableDiffusionPipeline", "UNet2DConditionModel", str(size)]
    told = in_a_new_process(LOADING.format(line=""), str(saved))  # diffusers 0.41 imports what an index names
    assert told.stdout == done.stdout or "import fxprune.pretrained before calling `from_pretrained`" in told.stderr


@pytest.mark.parametrize("name", ["ddpm", "sd1", "sd3", "dit"])
def test_diffusers_loads_the_same_pipeline(tmp_path: Path, name: str) -> None:
    pipeline, case = smaller(name), PIPELINES[name]
    folder = fxprune.save_pipeline(pipeline, tmp_path / "p")
    absent = {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3" else {}
    again = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
    assert type(again) is type(pipeline)
    for part, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            left = again.components[part].state_dict()
            assert all(torch.equal(left[k], v) for k, v in module.state_dict().items())
    # Not bit for bit: this loader leaves weights where they lie in the file, and kernels round by that.
    np.testing.assert_allclose(case.images(again), case.images(pipeline), atol=1e-4)
    assert fxprune.report(again).plan == fxprune.report(pipeline).plan
    half = type(pipeline).from_pretrained(folder, torch_dtype=torch.bfloat16, **absent)
    assert {p.dtype for p in find_adapter(half).unwrap(half)[0].parameters()} == {torch.bfloat16}


def test_nothing_is_imported_for_it() -> None:
    done = in_a_new_process("import sys, fxprune.pretrained; print({'diffusers', 'transformers'} & set(sys.modules))")
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="no attribute 'os'"):
        _ = fxprune.pretrained.os  # type: ignore[attr-defined]


def test_a_pipeline_where_a_component_should_be_is_refused(tmp_path: Path, saved: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "p")
    shutil.rmtree(folder / "unet")
    shutil.copytree(saved, folder / "unet")
    with pytest.raises(SaveError, match="holds a pipeline where a model should be"):
        diffusers.DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(("function", "message"), [("save", "use fxprune.save$"), ("load", "use fxprune.load$")])
def test_pipeline_functions_are_for_pipelines(tmp_path: Path, sd1: Any, function: str, message: str) -> None:
    fxprune.save(sd1.unet, tmp_path / "m")
    with pytest.raises(SaveError, match=message):
        (
            fxprune.load_pipeline(tmp_path / "m")
            if function == "load"
            else fxprune.save_pipeline(sd1.unet, tmp_path / "n")
        )


# ---- several files --------------------------------------------------------------------------------------------------


def test_shards_are_of_the_asked_size_and_hold_everything_once(saved: Path, sd1: Any) -> None:
    index = json.loads((saved / "unet" / "model.safetensors.index.json").read_text())
    files = sorted((saved / "unet").glob("model-*.safetensors"))
    assert len(files) > 3
    assert {f.name for f in files} == set(index["weight_map"].values())
    held = [safetensors.torch.load_file(f) for f in files]
    assert all(len(h) == 1 or sum(t.nbytes for t in h.values()) <= 400_000 for h in held)
    assert sum(map(len, held)) == len(index["weight_map"]) == len(sd1.unet.state_dict())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in sd1.unet.state_dict().values())
    again = fxprune.load_pipeline(saved)
    for key, tensor in sd1.unet.state_dict().items():
        assert torch.equal(again.unet.state_dict()[key], tensor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtypes_survive_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    pipeline = smaller("sd1").to(dtype)
    again = fxprune.load_pipeline(fxprune.save_pipeline(pipeline, tmp_path / "p", max_shard_size=200_000))
    for name in ("unet", "vae", "text_encoder"):
        one, other = getattr(pipeline, name).state_dict(), getattr(again, name).state_dict()
        assert {t.dtype for t in other.values()} <= {dtype, torch.int64}
        assert all(torch.equal(other[k], v) for k, v in one.items())


def test_one_file_becomes_several_and_one_again(tmp_path: Path, sd1: Any) -> None:
    for size, several in (("10GB", False), ("300KB", True), (10**9, False)):
        fxprune.save(sd1.unet, tmp_path / "m", max_shard_size=size)
        assert (tmp_path / "m" / "model.safetensors.index.json").exists() is several
        assert (tmp_path / "m" / "model.safetensors").exists() is not several
        fxprune.load(tmp_path / "m")


@pytest.mark.parametrize("size", ["5", "GB", 0, -1, "-1GB", 1.5, "0MB"])
def test_sizes_that_are_none(tmp_path: Path, size: Any) -> None:
    with pytest.raises(SaveError, match="is no size; write bytes, or text such as"):
        fxprune.save(nn.Linear(2, 2), tmp_path / "m", max_shard_size=size)


def reindexed(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        data = json.loads(path.read_text())
        change(data["weight_map"])
        path.write_text(json.dumps(data))

    return damage


def first(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def grown(folder: Path) -> None:
    safetensors.torch.save_file({**safetensors.torch.load_file(first(folder)), "more": torch.zeros(1)}, first(folder))


def swapped(folder: Path) -> None:
    one, other = sorted(folder.glob("model-*.safetensors"))[:2]
    held = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(held)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "shard missing": (lambda f: first(f).unlink(), r"00001-of-.*safetensors is damaged: FileNotFoundError"),
    "shard truncated": (lambda f: first(f).write_bytes(first(f).read_bytes()[:-3]), "is damaged: SafetensorError"),
    "shard a pickle": (lambda f: first(f).write_bytes(b"\x80\x04N."), "is damaged: SafetensorError"),
    "shards swapped": (swapped, "do not agree"),
    "tensor too many": (grown, "do not agree: 'more'"),
    "index of text": (lambda f: (f / "model.safetensors.index.json").write_text("{"), "index.json is damaged"),
    "index of a list": (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "is damaged: TypeError"),
    "index without map": (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "is damaged: KeyError"),
    "path upwards": (reindexed(lambda m: m.update({"conv_in.bias": "../x.safetensors"})), "damaged or hostile: '../"),
    "absolute path": (reindexed(lambda m: m.update({"conv_in.bias": "/etc/passwd"})), "hostile: '/etc/passwd'"),
    "a pickle's name": (reindexed(lambda m: m.update({"conv_in.bias": "pytorch_model.bin"})), "damaged or hostile"),
    "tensor not listed": (reindexed(lambda m: m.pop("conv_in.bias")), "do not agree: 'conv_in.bias'"),
    "tensor unknown": (reindexed(lambda m: m.update({"new": first_name(m)})), "do not agree: 'new'"),
    "both": (lambda f: shutil.copy(first(f), f / "model.safetensors"), "holds both model.safetensors and"),
}  # fmt: skip


def first_name(index: dict[str, str]) -> str:
    return min(index.values())


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_shards_are_refused(tmp_path: Path, saved: Path, case: str) -> None:
    damage, message = DAMAGED[case]
    folder = shutil.copytree(saved / "unet", tmp_path / "m")
    damage(folder)
    with pytest.raises(SaveError, match=message):
        fxprune.load(folder)


# ---- the model card -------------------------------------------------------------------------------------------------

BASE = '---\nlicense: creativeml-openrail-m\ntags: [a, b]\nbase_model: "some/base"\n---\n# Base\nlicense: other\n'


def header(folder: Path) -> dict[str, str]:
    lines = (folder / "README.md").read_text().split("---\n")[1].splitlines()
    return {k: json.loads(v) for k, _, v in (line.partition(": ") for line in lines)}


def test_the_card_tells_what_went_and_what_was_measured(tmp_path: Path, sd1: Any) -> None:
    folder = fxprune.save_pipeline(sd1, tmp_path / "p", metrics={"loss": 0.125, "note": "a | b"})
    text, plan = (folder / "README.md").read_text(), fxprune.report(sd1).plan
    assert header(folder) == {"library_name": "fxprune", "tags": ["fxprune", "structural-pruning", "diffusers"]}
    before, after = plan.costs["params"]
    assert f"| params | {before:,.0f} | {after:,.0f} | -40.0% |" in text
    for part in (
        "# StableDiffusionPipeline",
        "## unet",
        "`magnitude`",
        "masked = dense",
        "| loss | 0.125 |",
        "a \\| b",
    ):
        assert part in text
    assert str(tmp_path) not in text
    assert str(tmp_path) not in (folder / "model_index.json").read_text()


def test_licence_and_base_are_carried_over(tmp_path: Path, sd1: Any) -> None:
    """From the base's folder through pruning, saving and loading, for a pipeline and for a model out of it."""
    PIPELINES["sd1"].around(model("sd1")).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text(BASE)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "base")
    small = fxprune.prune(pipeline, "magnitude", 0.4, progress=False)
    carried = {"license": "creativeml-openrail-m", "base_model": "some/base"}
    one = fxprune.save_pipeline(small, tmp_path / "one")
    two = fxprune.save_pipeline(fxprune.load_pipeline(one), tmp_path / "two")
    three = fxprune.save(fxprune.load_pipeline(one).unet, tmp_path / "three")
    four = fxprune.save(fxprune.load(three), tmp_path / "four")
    for folder in (one, two, three, four):
        assert header(folder).items() >= carried.items(), folder
    assert "license" not in header(fxprune.save_pipeline(sd1, tmp_path / "none"))


def test_a_name_on_the_hub_is_the_base_model(tmp_path: Path) -> None:
    net = fxprune.prune(model("ddpm"), "magnitude", 0.4, progress=False)
    net.register_to_config(_name_or_path="google/ddpm-cifar10-32")
    assert header(fxprune.save(net, tmp_path / "m"))["base_model"] == "google/ddpm-cifar10-32"


@pytest.mark.parametrize(
    "text",
    [
        "license: x",
        "---\nlicense: {a: b}\n---\n",
        "---\nlicense: x",
        "\xff",
        "---\nother: 1\n---\n",
        "---\n: : :\n---\n",
    ],
)
def test_a_base_card_of_nonsense_gives_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "README.md").write_bytes(text.encode("latin-1"))
    net = model("tiny-vae")
    net.register_to_config(_name_or_path=str(tmp_path / "base"))
    assert "license" not in header(fxprune.save(net, tmp_path / "m"))


def test_an_edited_card_is_not_lost(tmp_path: Path, sd1: Any) -> None:
    for save, given in ((fxprune.save, nn.Linear(2, 2)), (fxprune.save_pipeline, sd1)):
        folder = save(given, tmp_path / save.__name__)
        save(given, folder)
        with (folder / "README.md").open("a") as f:
            f.write("My notes.")
        with pytest.raises(SaveError, match=r"did not write \(README.md\), and they would be lost"):
            save(given, folder)
        assert (folder / "README.md").read_text().endswith("My notes.")


# ---- LoRA -----------------------------------------------------------------------------------------------------------


def lora(net: Any, folder: Path) -> None:
    """Give a UNet random LoRA layers, and save them."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    net.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    for name, p in net.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, 0, 0.5)
    layers = get_peft_model_state_dict(net)
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)


def test_lora_of_the_pruned_shapes_loads_and_fuses(tmp_path: Path, saved: Path, sd1: Any) -> None:
    pytest.importorskip("peft")
    case = PIPELINES["sd1"]
    pipeline = fxprune.load_pipeline(saved)
    lora(pipeline.unet, tmp_path / "lora")
    styled = case.images(pipeline)
    assert abs(styled - case.images(sd1)).max() > 1e-2
    with pytest.raises(SaveError, match=r"is a layer of peft .*: save it apart .* or make it part of the weights"):
        fxprune.save_pipeline(pipeline, tmp_path / "p")
    again = fxprune.load_pipeline(saved)
    again.load_lora_weights(tmp_path / "lora")
    # Not bit for bit: diffusers leaves the layers where they lie in their file, and kernels round by that.
    assert abs(case.images(again) - styled).max() < 1e-4
    again.fuse_lora()
    again.unload_lora_weights()
    fused = fxprune.load_pipeline(fxprune.save_pipeline(again, tmp_path / "fused"))
    assert abs(case.images(fused) - styled).max() < 1e-4


def test_lora_of_the_dense_shapes_is_refused(tmp_path: Path, saved: Path, sd1: Any) -> None:
    pytest.importorskip("peft")
    lora(model("sd1"), tmp_path / "lora")
    pipeline = fxprune.load_pipeline(saved)
    drawn = PIPELINES["sd1"].images(sd1)
    with pytest.raises(RuntimeError, match=r"size mismatch for .*lora_A"):
        pipeline.load_lora_weights(tmp_path / "lora")
    assert (PIPELINES["sd1"].images(pipeline) == drawn).all()


# ---- other weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd1", "dit"])
def test_a_plan_is_replayed_on_ema_weights(tmp_path: Path, name: str) -> None:
    net = model(name)
    plan = fxprune.report(fxprune.prune(net, "magnitude", 0.4, progress=False)).plan
    ema = copy.deepcopy(net)
    with torch.no_grad():
        for p in ema.parameters():
            p.mul_(0.9).add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    read = fxprune.Plan.from_json(plan.to_json())
    small = fxprune.apply(ema, read)
    assert fxprune.report(small).checks[0].ok
    again = fxprune.load(fxprune.save(small, tmp_path / "ema"))
    one, two = everything(small), everything(again)
    assert all(torch.equal(one[k], two[k]) for k in one)
    held = {n: t for n, t in ema.state_dict().items() if t.shape == two[n].shape}
    assert held
    assert all(torch.equal(two[n], t) for n, t in held.items())


# ---- a kill at any moment -------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
import safetensors.torch, torch, fxprune
from pathlib import Path
folder, at, size = sys.argv[1], int(sys.argv[2]), sys.argv[3]
given = fxprune.load(folder)
net = given.unet if hasattr(given, "unet") else given
with torch.no_grad():
    next(net.parameters()).add_(1)
calls, real = [], safetensors.torch.save_file
def save_file(tensors, path, *args, **kwargs):
    calls.append(path)
    if len(calls) == at:
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    return real(tensors, path, *args, **kwargs)
safetensors.torch.save_file = save_file
fxprune.save(given, folder, max_shard_size=size)
"""


@pytest.mark.parametrize(("kind", "at"), [("model", 1), ("shards", 3), ("pipeline", 2)])
def test_a_kill_while_saving_leaves_the_folder(tmp_path: Path, saved: Path, sd1: Any, kind: str, at: int) -> None:
    folder = tmp_path / "m"
    if kind == "pipeline":
        shutil.copytree(saved, folder)
    else:
        fxprune.save(sd1.unet, folder)
    before = listing(folder)
    done = in_a_new_process(KILLED, str(folder), str(at), "10GB" if kind == "model" else "400KB")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert listing(folder) == before
    (left,) = tmp_path.glob(".m.*.new")
    given = fxprune.load(folder)
    fxprune.save(given, folder)
    fxprune.load(folder)
    assert left.exists(), "somebody might be writing it still"
    for path in (left, *left.rglob("*")):
        os.utime(path, (0, 0))
    fxprune.save(given, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
