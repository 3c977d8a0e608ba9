"""Saving and loading: bit for bit in a new process, nothing of a folder is run, and no folder is ever half written."""

import copy
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import saved_nets
import torch
from saved_nets import IDS, Plain, everything, found, tiny_unet, unet_inputs
from torch import Tensor, nn

import fxprune
from fxprune import SaveError
from fxprune.reporting.report import Report, attach
from fxprune.rewriting.attributes import Change
from fxprune.saving import folder as saving_folder
from fxprune.saving import stock
from fxprune.saving.methods import SavePretrained
from fxprune.saving.save import load, save

FILES = ["README.md", "fxprune.json", "model.safetensors"]


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return fxprune.prune(tiny_unet().eval(), "magnitude", 0.3, progress=False)


@pytest.fixture(scope="module")
def plain() -> Plain:
    """Pruned: fewer heads, a narrower stream."""
    torch.manual_seed(0)
    return fxprune.prune(Plain().eval(), "random", 0.5, example_inputs=(IDS,), progress=False)


@pytest.fixture(scope="module")
def pipeline(unet: Any) -> Any:
    from diffusers import DDPMPipeline, DDPMScheduler

    return DDPMPipeline(unet=unet, scheduler=DDPMScheduler(num_train_timesteps=50))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, unet: Any, plain: Plain, pipeline: Any) -> Path:
    """A saved `unet`, `plain` and `pipeline`; tests copy before they change anything."""
    root = tmp_path_factory.mktemp("saved")
    for name, model in (("unet", unet), ("plain", plain), ("pipeline", pipeline)):
        save(model, root / name)
    return root


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a folder's fxprune.json."""
    path = folder / "fxprune.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


# ---- what comes back ---------------------------------------------------------------------------------------------


def test_a_new_process_loads_the_same_bits(tmp_path: Path, folders: Path, unet: Any, plain: Plain) -> None:
    root = shutil.copytree(folders, tmp_path / "root")
    command = [sys.executable, saved_nets.__file__, str(root), str(torch.get_num_threads())]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    for name, before in (("unet", everything(unet, *unet_inputs())), ("plain", everything(plain, IDS))):
        after = found(root, name)
        assert same(dict(sorted(before.items())), dict(sorted(after.items()))), name
    assert same(found(root, "unet"), found(root, "pipeline"))


def test_class_attributes_and_report_come_back(folders: Path, unet: Any, plain: Plain) -> None:
    for small, again in ((unet, load(folders / "unet")), (plain, load(folders / "plain", Plain))):
        made, kept = fxprune.report(small), fxprune.report(again)
        assert type(again) is type(small)
        assert (kept.plan, kept.changes, kept.checks, kept.forward) == (made.plan, made.changes, made.checks, "module")
        assert [(c.name, c.axes, c.share) for c in kept.held] == [(c.name, c.axes, c.share) for c in made.held]
        for path, module in small.named_modules():
            assert integers(again.get_submodule(path)) == integers(module), path
    assert load(folders / "plain", Plain).heads == plain.heads < Plain().heads
    assert stock.config_of(load(folders / "unet")) == stock.config_of(unet)


def integers(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if isinstance(v, (int, tuple)) and not k.startswith("_")}


@pytest.mark.parametrize("name", ["unet", "plain"])
def test_a_loaded_model_is_saved_again_identically(tmp_path: Path, folders: Path, name: str) -> None:
    save(load(folders / name, Plain if name == "plain" else None), tmp_path / "again")
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == FILES
    for file in FILES:
        assert (tmp_path / "again" / file).read_bytes() == (folders / name / file).read_bytes(), file


def test_tied_tensors_are_stored_once_and_tied_again(folders: Path) -> None:
    stored = safetensors.torch.load_file(folders / "plain" / "model.safetensors")
    assert "embed.weight" in stored
    assert "head.weight" not in stored
    again = load(folders / "plain", Plain)
    assert again.head.weight is again.embed.weight


def test_sliced_buffers_come_back_the_non_persistent_ones_too(folders: Path, plain: Plain) -> None:
    again = load(folders / "plain", Plain)
    assert again.scale.shape == plain.scale.shape != Plain().scale.shape
    assert torch.equal(again.scale, plain.scale)
    assert "scale" not in again.state_dict()
    assert again.count.dtype is torch.int64


def test_dtype_gradient_flags_and_memory_format_come_back(tmp_path: Path, unet: Any) -> None:
    model = copy.deepcopy(unet).to(torch.bfloat16).to(memory_format=torch.channels_last).train()
    model.conv_in.weight.requires_grad_(False)
    model.time_embedding.to(torch.float16)
    again = load(save(model, tmp_path / "m"))
    assert not again.training
    for (name, a), (other, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert (name, a.dtype, a.requires_grad, order(a)) == (other, b.dtype, b.requires_grad, order(b))
        assert torch.equal(a, b)
    assert order(again.mid_block.resnets[0].conv1.weight)[1] == 1
    assert again.conv_in.weight.dtype is torch.bfloat16


def order(tensor: Tensor) -> list[int]:
    """Strides of the axes that are longer than one."""
    return [s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1]


def test_a_loaded_model_is_a_model_of_its_own(folders: Path) -> None:
    model = load(folders / "unet")
    twin = copy.deepcopy(model).train()
    twin(*unet_inputs()).sample.square().mean().backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    assert not torch.equal(twin.conv_in.weight, model.conv_in.weight)
    assert same(everything(model, *unet_inputs()), everything(load(folders / "unet"), *unet_inputs()))
    shares = {t.untyped_storage().data_ptr() for t in model.parameters()}
    assert len(shares) == len(list(model.parameters())), "parameters share the mapped file"


def test_a_model_that_was_not_pruned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = tiny_unet().eval()
    again = load(save(model, tmp_path / "m", metrics={"loss": 0.5, "steps": [1, 2]}))
    assert same(everything(model, *unet_inputs()), everything(again, *unet_inputs()))
    assert json.loads((tmp_path / "m" / "fxprune.json").read_text())["metrics"] == {"loss": 0.5, "steps": [1, 2]}
    with pytest.raises(fxprune.PlanError, match="was not pruned"):
        fxprune.report(again)


def test_a_transformers_model_is_built_by_its_adapter(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertModel(BertConfig(vocab_size=30, **sizes)).eval()
    small = fxprune.prune(model, "magnitude", 0.05, progress=False)
    again = load(save(small, tmp_path / "m"))
    assert torch.equal(small(input_ids=IDS).last_hidden_state, again(input_ids=IDS).last_hidden_state)


def test_a_config_is_saved_as_it_was_before_pruning(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    small = fxprune.prune(model, "magnitude", 0.2, progress=False)
    small.config.type_vocab_size = 1
    made = fxprune.report(small)
    attach(small, Report(made.plan, (*made.changes, Change("", "config.type_vocab_size", 2, 1))))
    again = load(save(small, tmp_path / "m"))
    assert json.loads((tmp_path / "m" / "fxprune.json").read_text())["config"]["config"]["type_vocab_size"] == 2
    assert (again.config.type_vocab_size, small.config.type_vocab_size) == (1, 1)


def test_the_given_stock_module_stays_as_it_is(folders: Path) -> None:
    given = Plain()
    before = {n: t.clone() for n, t in everything(given, IDS).items()}
    first, second = load(folders / "plain", given), load(folders / "plain", lambda: Plain())
    assert same(before, everything(given, IDS))
    assert same(everything(first, IDS), everything(second, IDS))


def test_loading_leaves_random_numbers_alone(folders: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    load(folders / "unet")
    assert torch.equal(torch.rand(3), expected)


def test_a_stock_model_has_empty_parameters_and_real_everything_else() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.tied = nn.Linear(2, 2)
            self.tied.weight = self.linear.weight
            self.register_buffer("held", torch.arange(3))
            self.loose = torch.arange(4)
            self.register_buffer("drawn", torch.rand(2))

    state = torch.get_rng_state()
    with stock.empty_parameters(), ThreadPoolExecutor() as pool:
        table, elsewhere = Table(), pool.submit(Table).result()
    assert torch.equal(torch.get_rng_state(), state)
    assert table.linear.weight.is_meta
    assert table.tied.weight is table.linear.weight
    assert not elsewhere.linear.weight.is_meta
    assert table.held.tolist() == [0, 1, 2]
    assert table.loose.tolist() == [0, 1, 2, 3]
    assert not Table().linear.weight.is_meta


def test_files_are_as_readable_as_others(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    assert (folders / "unet" / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_model_that_was_pruned_twice(tmp_path: Path, folders: Path) -> None:
    for name, stock_module, inputs in (("unet", None, unet_inputs()), ("plain", Plain, (IDS,))):
        given = {} if name == "unet" else {"example_inputs": inputs}
        twice = fxprune.prune(load(folders / name, stock_module), "random", 0.2, progress=False, seed=1, **given)
        again = load(save(twice, tmp_path / name), stock_module)
        assert same(everything(twice, *inputs), everything(again, *inputs))
        made, kept = fxprune.report(twice), fxprune.report(again)
        assert (kept.plan, kept.earlier, kept.changes) == (made.plan, made.earlier, made.changes)
        assert kept.earlier == (fxprune.report(load(folders / name, stock_module)).plan,)


# ---- pipelines ---------------------------------------------------------------------------------------------------


def test_a_pipeline_comes_back_whole(tmp_path: Path, folders: Path, pipeline: Any) -> None:
    again = load(folders / "pipeline")
    assert type(again) is type(pipeline)
    assert again.scheduler.config.num_train_timesteps == 50
    assert fxprune.report(again.unet).plan == fxprune.report(pipeline.unet).plan
    images = [
        p(num_inference_steps=2, generator=torch.manual_seed(0), output_type="np").images for p in (again, pipeline)
    ]
    assert (images[0] == images[1]).all()
    save(again, tmp_path / "twice")
    assert sorted(p.name for p in (tmp_path / "twice" / "unet").iterdir()) == FILES[1:]
    assert (
        type(vars(pipeline.unet)["save_pretrained"]) is SavePretrained
    )  # its own again, not the writer of the pipeline


def test_other_components_keep_their_dtype(tmp_path: Path, unet: Any) -> None:
    from diffusers import DDIMScheduler, LDMPipeline, VQModel

    vae = VQModel(block_out_channels=(16,), norm_num_groups=8, latent_channels=1)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        pipe = LDMPipeline(vqvae=vae.to(dtype), unet=unet, scheduler=DDIMScheduler())
        again = load(save(pipe, tmp_path / "ldm", metrics={"fid": 3}))
        assert same(pipe.vqvae.state_dict(), again.vqvae.state_dict())
        assert next(again.unet.parameters()).dtype is torch.float32
    with pytest.raises(SaveError, match=r"vqvae is in float64, .*; pipeline.vqvae.float\(\) first"):
        save(LDMPipeline(vqvae=vae.double(), unet=unet, scheduler=DDIMScheduler()), tmp_path / "ldm")


def test_a_pipeline_without_a_pruned_component_is_refused(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    with pytest.raises(SaveError, match="no component of this DDPMPipeline was pruned"):
        save(DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler()), tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_pipeline_of_ones_own_is_refused(tmp_path: Path, unet: Any) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    class Mine(DDPMPipeline):  # type: ignore[misc]
        pass

    with pytest.raises(SaveError, match="Mine is no pipeline of diffusers' own"):
        save(Mine(unet=unet, scheduler=DDPMScheduler()), tmp_path / "p")


# ---- what cannot be saved ----------------------------------------------------------------------------------------


class Stateful(nn.Linear):
    def get_extra_state(self) -> object:
        return object()


def _meta() -> nn.Module:
    return nn.Linear(2, 2, device="meta")


def _complex() -> nn.Module:
    return nn.ParameterList([torch.zeros(2, dtype=torch.complex128)])


def _sparse() -> nn.Module:
    module = nn.Module()
    module.register_buffer("table", torch.eye(2).to_sparse())
    return module


def _graph() -> nn.Module:
    model = nn.Linear(2, 2)
    attach(model, Report(fxprune.Plan("Linear", "", {}, {}), (), forward="graph", reason="view() needs 3"))
    return model


def _float_change() -> nn.Module:
    model = nn.Linear(2, 2)
    attach(model, Report(fxprune.Plan("Linear", "", {}, {}), (Change("", "scale", 1.0, 0.5),)))
    return model


def _by_hand() -> nn.Module:
    model = tiny_unet()
    model.conv_norm_out.num_groups = 4
    return model  # type: ignore[no-any-return]


def _extended() -> nn.Module:
    model = tiny_unet()
    model.conv_in.extra = nn.Linear(1, 1)
    return model  # type: ignore[no-any-return]


UNSAVEABLE = {
    "no module": (lambda: {"a": 1}, "model must be an nn.Module, or a pipeline around one; this is of type dict"),
    "extra state": (lambda: nn.Sequential(Stateful(2, 2)), r"0 \(Stateful\) holds extra state"),
    "meta": (_meta, "weight is a tensor without values"),
    "complex128": (_complex, "0 is of torch.complex128, which safetensors cannot hold"),
    "sparse": (_sparse, r"table is a Tensor \(torch.sparse_coo\)"),
    "graph forward": (_graph, r"its own forward cannot follow the plan \(view\(\) needs 3\)"),
    "float attribute": (_float_change, "scale became 1.0; only integers can be saved"),
    "attribute changed by hand": (_by_hand, "conv_norm_out.num_groups is 4, but a UNet2DModel .* has 8"),
    "module added by hand": (_extended, "the stock module lacks 'conv_in.extra"),
}


@pytest.mark.parametrize("case", UNSAVEABLE)
def test_what_cannot_be_saved_is_refused(tmp_path: Path, case: str) -> None:
    make, message = UNSAVEABLE[case]
    with pytest.raises(SaveError, match=message):
        save(make(), tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metrics", [{"loss": float("nan")}, {"model": nn.Linear(1, 1)}, {"image": torch.zeros(1)}])
def test_metrics_must_be_json(tmp_path: Path, metrics: dict[str, Any]) -> None:
    with pytest.raises(SaveError, match="the metrics of this Linear cannot be written as JSON"):
        save(nn.Linear(2, 2), tmp_path / "m", metrics=metrics)


# ---- folders are whole or not there ------------------------------------------------------------------------------


def listing(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_earlier_save_is_replaced(tmp_path: Path, folders: Path) -> None:
    save(nn.Linear(2, 2), tmp_path / "m")
    save(load(folders / "unet"), tmp_path / "m")
    assert listing(tmp_path / "m") == listing(folders / "unet")
    (tmp_path / "empty").mkdir()
    save(nn.Linear(2, 2), tmp_path / "empty")
    save(nn.Linear(2, 2), tmp_path / "a" / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "empty", "m"]


def test_other_files_are_never_lost(tmp_path: Path, pipeline: Any) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("x")
    with pytest.raises(SaveError, match=r"holds files that fxprune did not write \(thesis.tex\)"):
        save(nn.Linear(2, 2), tmp_path / "notes")
    with pytest.raises(SaveError, match="is a file"):
        save(nn.Linear(2, 2), tmp_path / "notes" / "thesis.tex")
    for name, model in (("m", nn.Linear(2, 2)), ("p", pipeline)):
        save(model, tmp_path / name)
        before = listing(tmp_path / name)
        save(model, tmp_path / name)
        (tmp_path / name / "README.md").write_text("mine")
        with pytest.raises(SaveError, match=r"\(README.md\), and they would be lost"):
            save(nn.Linear(3, 3), tmp_path / name)
        assert listing(tmp_path / name) == before | {"README.md": b"mine"}


def _failing(name: str, at: int, error: BaseException, forever: bool = False) -> Callable[..., Any]:
    """`os.rename` that fails at its n-th call (and after it, if `forever`)."""
    real, calls = getattr(os, name), []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == at or (forever and len(calls) > at):
            raise error
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize("at", [1, 2])
def test_an_error_leaves_the_old_folder(
    tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    root = shutil.copytree(folders / "unet", tmp_path / "m").parent
    monkeypatch.setattr(saving_folder, "exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", _failing("rename", at, OSError(28, "No space left on device")))
    with pytest.raises(SaveError, match="No space left on device; what was there is as it was"):
        save(nn.Linear(2, 2), root / "m")
    assert [p.name for p in root.iterdir()] == ["m"]
    assert listing(root / "m") == listing(folders / "unet")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_while_writing_leaves_the_old_folder(
    tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    shutil.copytree(folders / "unet", tmp_path / "m")
    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises((SaveError, KeyboardInterrupt)):
        save(nn.Linear(2, 2), tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert listing(tmp_path / "m") == listing(folders / "unet")


class Killed(BaseException):
    """Stands for a kill: nothing is tidied up after it."""


def test_a_kill_between_the_renames_leaves_both_folders(
    tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders / "unet", tmp_path / "m")
    with monkeypatch.context() as m:
        m.setattr(saving_folder, "exchange", lambda *_: False)
        m.setattr(os, "rename", _failing("rename", 2, Killed(), forever=True))
        m.setattr(shutil, "rmtree", lambda *a, **k: None)
        with pytest.raises(Killed):
            save(nn.Linear(2, 2), tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert type(load(tmp_path / "m")).__name__ == "UNet2DModel"
    (old,), (new,) = tmp_path.glob(".m.*.old"), tmp_path.glob(".m.*.new")
    assert listing(old) == listing(folders / "unet")
    assert isinstance(load(new, nn.Linear(2, 2)), nn.Linear)


# ---- damaged and hostile folders ---------------------------------------------------------------------------------


def put(*path: Any, value: Any) -> Callable[[Path], None]:
    """A change of fxprune.json: the value at a path of keys."""

    def change(folder: Path) -> None:
        def set_(data: Any) -> None:
            for key in path[:-1]:
                data = data[key]
            data[path[-1]] = value

        edit(folder, set_)

    return change


def drop(*path: Any) -> Callable[[Path], None]:
    """A change of fxprune.json: a key less."""

    def change(folder: Path) -> None:
        def remove(data: Any) -> None:
            for key in path[:-1]:
                data = data[key]
            del data[path[-1]]

        edit(folder, remove)

    return change


def text(value: str | bytes, name: str = "fxprune.json") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(value if isinstance(value, bytes) else value.encode()) and None


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def changed(**values: Any) -> Callable[[Path], None]:
    return put("changes", 0, value={"path": "", "name": "heads", "before": 4, "after": 3} | values)


def other_plan(folder: Path) -> None:
    """The plan of another pruning of the same network, which takes more."""
    model = fxprune.prune(Plain().eval(), "random", 0.7, example_inputs=(IDS,), progress=False, verify=False)
    put("plan", value=json.loads(fxprune.report(model).plan.to_json()))(folder)


def more_tensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    safetensors.torch.save_file({**safetensors.torch.load_file(path), "../../x": torch.zeros(1)}, path)


def rename_tensor(new: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda d: d["tensors"].update({new: d["tensors"].pop("up.bias")}))


INFO = {"kind": "parameter", "shape": [1], "dtype": "float32", "requires_grad": True, "channels_last": False}

# name -> (what is done to the folder of `plain`, what the message says)
DAMAGED: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "there is no folder"),
    "no header": (lambda f: (f / "fxprune.json").unlink(), "it has no fxprune.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is damaged: FileNotFoundError"),
    "empty header": (text(""), "cannot be read: JSONDecodeError"),
    "no JSON": (text('{"format": 1,'), "cannot be read: JSONDecodeError"),
    "no UTF-8": (text(b"\xff\xfe"), "cannot be read: UnicodeDecodeError"),
    "deep JSON": (text("[" * 200_000), "cannot be read: RecursionError"),
    "a list": (text("[]"), "format is missing"),
    "foreign JSON": (text('{"_class_name": "UNet2DModel"}'), "format is missing"),
    "newer format": (put("format", value=99), "it has format 99, this fxprune reads up to 1; update fxprune"),
    "format is true": (put("format", value=True), "format is a bool, not a int"),
    "kind": (put("kind", value="zip"), "kind is 'zip', not model or pipeline"),
    "graph forward": (put("forward", value="graph"), "forward is 'graph'"),
    "class missing": (drop("class"), "class is missing"),
    "another class": (put("class", "name", value="Linear"), "the plan is of a Plain, the model is a Linear"),
    "truncated weights": (cut, "model.safetensors is damaged: SafetensorError"),
    "no safetensors": (text(b"\x80\x04N.", "model.safetensors"), "model.safetensors is damaged: SafetensorError"),
    "tensors missing": (drop("tensors"), "tensors is missing"),
    "tensor missing": (drop("tensors", "up.bias"), "the folder lacks 'up.bias'"),
    "tensor too many": (put("tensors", "new", value=INFO), "the stock module lacks 'new'"),
    "weights too many": (more_tensors, "do not agree: '../../x'"),
    "name with a path": (rename_tensor("../../up.bias"), "the stock module lacks '../../up.bias'"),
    "name with dunder": (rename_tensor("__class__.up"), "the stock module lacks '__class__.up'"),
    "kind of tensor": (put("tensors", "count", "kind", value="pickle"), "kind is 'pickle', not parameter or buffer"),
    "parameter for buffer": (put("tensors", "count", "kind", value="parameter"), "count is a parameter in the folder"),
    "shape too large": (put("tensors", "up.bias", "shape", value=[99]), r"up.bias is of shape \(99,\), which cannot"),
    "shape of other rank": (put("tensors", "up.bias", "shape", value=[2, 3]), "up.bias is of shape"),
    "shape not stored": (put("tensors", "up.bias", "shape", value=[5]), r"up.bias is torch.float32 of shape \(24,\)"),
    "negative shape": (put("tensors", "up.bias", "shape", value=[-1]), r"shape\[0\] is -1, not an integer of at least"),
    "shape of floats": (put("tensors", "up.bias", "shape", value=[1.5]), r"shape\[0\] is 1.5"),
    "dtype not stored": (put("tensors", "up.bias", "dtype", value="float16"), "but float16 of"),
    "dtype unknown": (put("tensors", "up.bias", "dtype", value="os.system"), "is 'os.system', which is no dtype"),
    "gradient of integers": (put("tensors", "count", "requires_grad", value=True), "cannot require a gradient"),
    "channels_last of a vector": (put("tensors", "up.bias", "channels_last", value=True), "have no channels_last"),
    "tied to nothing": (put("tied", "head.weight", value="x"), "tied to 'x', which is no tensor of its own"),
    "tied to itself": (put("tied", "up.bias", value="up.bias"), "tied to 'up.bias', which is no tensor of its own"),
    "tie to another shape": (put("tied", "head.weight", value="up.bias"), r"head.weight is of shape \(24,\), which"),
    "plan missing": (drop("plan"), "plan is missing"),
    "plan null": (put("plan", value=None), "it has changed attributes but no plan"),
    "plan without fields": (put("plan", value={}), "model is missing"),
    "plan with a new field": (put("plan", "exec", value="1"), "not a plan: TypeError"),
    "plan of a newer format": (put("plan", "format", value=99), "the plan is of a newer format"),
    "plan of another class": (put("plan", "model", value="ResNet"), "the plan is of a ResNet, the model is a Plain"),
    "plan of another model": (other_plan, "it is the plan of another model"),
    "plan for a group unknown": (put("plan", "sizes", "x:0", value=3), "the plan's group 'x:0' names no axis"),
    "plan for an axis unknown": (put("plan", "sizes", "up.bias:7", value=3), "names no axis"),
    "an earlier plan": (put("earlier", value=[{"model": "x"}]), "fingerprint is missing"),
    "earlier of text": (put("earlier", value=["x"]), "model is missing"),
    "plan removes too many": (put("plan", "removed", "up.weight:0", value=[0, 9]), r"channels \[0, 9\]... of group"),
    "plan removes twice": (put("plan", "removed", "up.weight:0", value=[1, 1]), r"channels \[1, 1\]... of group"),
    "plan removes all": (put("plan", "removed", "up.weight:0", value=[0, 1, 2, 3]), "which has 4"),
    "plan with infinity": (put("plan", "removed", "up.weight:0", value=[float("inf")]), "inf is no index"),
    "plan with norms of text": (put("plan", "norms", value={"n": {"before": "8", "after": 4, "exact": True}}), "norms"),
    "attribute missing": (changed(name="hads"), "the stock module has no attribute 'hads'"),
    "attribute of nothing": (changed(path="nowhere"), "the stock module has no attribute 'nowhere.heads'"),
    "attribute of a tensor": (changed(path="up.weight"), "the stock module has no attribute 'up.weight.heads'"),
    "attribute with dunder": (changed(name="__class__"), "changes '__class__', which is no attribute that pruning"),
    "private attribute": (changed(name="_modules"), "changes '_modules'"),
    "dotted attribute": (changed(name="up.in_features"), "the stock module has no integer 'up.in_features'"),
    "training": (changed(name="training", before=0, after=1), "changes 'training'"),
    "method": (changed(name="forward", before=0, after=1), "the stock module has no attribute 'forward'"),
    "config dunder": (changed(name="config.__dict__"), "changes 'config.__dict__'"),
    "no config": (changed(name="config.heads"), "the stock module has no integer 'config.heads'"),
    "another old value": (changed(before=5), "the stock module has heads = 4, the saved one had 5 before"),
    "not an integer": (changed(after="3"), "after is '3', not an integer"),
    "a boolean": (changed(after=True), "after is True, not an integer"),
    "a float": (changed(after=3.0), "after is 3.0, not an integer"),
    "a row for a number": (changed(after=[3]), r"turns 4 into \(3,\)"),
    "rows of text": (changed(before=["a"], after=["b"]), "is 'a', not an integer"),
    "huge number": (changed(after=10**40), "not an integer of at least 0 [(]and of 63 bits"),
    "changes of text": (put("changes", value="x"), "changes is a str, not a list"),
    "change of text": (put("changes", value=["x"]), "name is missing"),
    "check of text": (put("checks", value=[{"name": "n", "error": "x", "tolerance": 1}]), "is a str, not a number"),
    "cause of text": (put("held", value=["x"]), "name is missing"),
    "versions": (put("versions", value={"torch": 2}), r"versions\['torch'\] is a int, not a str"),
    "metrics": (put("metrics", value=[1]), "metrics is a list, not a dict"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_folder_is_refused(tmp_path: Path, folders: Path, case: str) -> None:
    damage, message = DAMAGED[case]
    folder = shutil.copytree(folders / "plain", tmp_path / "m")
    damage(folder)
    given = Plain()
    before = everything(given, IDS)
    with pytest.raises(SaveError, match=message):
        load(folder, given)
    assert same(before, everything(given, IDS))


def bert(folder: Path) -> None:
    """A recipe that another adapter can follow, for another model."""
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    put("config", value={"_class_name": "BertModel", "config": sizes})(folder)
    put("adapter", value="transformers")(folder)


FOREIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "any module": (put("class", "module", value="os"), "os.UNet2DModel is no model class of diffusers"),
    "path": (put("class", "module", value="../../evil"), "evil.UNet2DModel is no model class of diffusers"),
    "diffusers look-alike": (
        put("class", "module", value="diffusers_evil.x"),
        "is no model class of diffusers: pass an unpruned",
    ),
    "not there any more": (put("class", "name", value="UNet9DModel"), "the plan is of a UNet2DModel"),
    "no model class": (put("config", value=None), "pass an unpruned one, fxprune.load"),
    "config of another": (
        put("config", "block_out_channels", value=[8, 32]),
        "which cannot come of the stock module's",
    ),
    "config with other depth": (put("config", "layers_per_block", value=2), "the folder lacks"),
    "config of nonsense": (put("config", "down_block_types", value=["Evil"]), "cannot be built from the saved config"),
    "config not a dict": (put("config", value=[1]), "config is a list, not a dict"),
    "adapter unknown": (put("adapter", value="evil"), "there is no adapter called 'evil'"),
    "adapter that cannot": (put("adapter", value="generic"), "GenericAdapter cannot build a model from a config"),
    "another class built": (bert, "the saved config gives a BertModel, not a UNet2DModel"),
    "adapter of other models": (put("adapter", value="transformers"), "cannot be built"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_only_known_classes_are_built(tmp_path: Path, folders: Path, case: str) -> None:
    damage, message = FOREIGN[case]
    folder = shutil.copytree(folders / "unet", tmp_path / "m")
    damage(folder)
    with pytest.raises(SaveError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("diffusers", "__doc__"),
        ("diffusers.utils", "logging"),
        ("diffusers.configuration_utils", "FrozenDict"),
        ("diffusers..models", "UNet2DModel"),
        ("diffusers.models.__init__", "UNet2DModel"),
        ("diffusers.nowhere", "Nothing"),
        ("diffusers", "DDPMPipeline"),
        ("diffusers", "ModelMixin.from_pretrained"),
    ],
)
def test_only_model_classes_of_diffusers_are_found(module: str, name: str) -> None:
    with pytest.raises(SaveError, match="no model class"):
        stock.model_class(module, name)


def test_a_class_that_moved_is_found_by_name() -> None:
    from diffusers import UNet2DModel

    assert stock.model_class("diffusers.models.somewhere_else", "UNet2DModel") is UNet2DModel


def test_a_stock_module_of_another_kind_is_refused(tmp_path: Path, folders: Path, plain: Plain) -> None:
    with pytest.raises(SaveError, match=r"scale is of shape \(8,\), which cannot come of|embed.weight is of shape"):
        load(save(Plain(width=8), tmp_path / "not_pruned"), Plain(width=16))
    with pytest.raises(SaveError, match="the folder holds a Plain, model= is a Linear"):
        load(folders / "plain", nn.Linear(2, 2))
    with pytest.raises(SaveError, match="model= gave a int"):
        load(folders / "plain", lambda: 3)  # type: ignore[arg-type,return-value]
    with pytest.raises(SaveError, match=r"is of shape .* cannot come of"):
        load(folders / "plain", Plain(width=8))
    with pytest.raises(SaveError, match="heads = 8, the saved one had 4 before"):
        load(folders / "plain", Plain(heads=8))
    with pytest.raises(SaveError, match="it is the plan of another model"):
        load(folders / "plain", plain)
    with pytest.raises(
        SaveError, match=r"no Plain can be built .* pass an unpruned one, fxprune.load\(DIR, model=Plain"
    ):
        load(folders / "plain")
    with pytest.raises(SaveError, match="holds a DDPMPipeline whole: load it without model="):
        load(folders / "pipeline", Plain)


class Evil:
    """Its pickle writes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def test_pickles_and_code_in_a_folder_are_never_touched(tmp_path: Path, folders: Path) -> None:
    mark = tmp_path / "touched"
    for name in ("unet", "pipeline"):
        folder = shutil.copytree(folders / name, tmp_path / name)
        for place in {folder, folder / "scheduler", folder / "unet"} & set(folder.rglob("*")) | {folder}:
            for file in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pkl", "model.pt"):
                (place / file).write_bytes(pickle.dumps(Evil(mark)))
        load(folder)
        assert not mark.exists()
        (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(mark)))
        (folder / "unet").mkdir(exist_ok=True)
        (folder / "unet" / "model.safetensors").write_bytes(pickle.dumps(Evil(mark)))
        with pytest.raises(SaveError, match="is damaged: SafetensorError"):
            load(folder)
        assert not mark.exists()


def index(*path: Any, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "model_index.json"
        data = json.loads(file.read_text())
        target = data
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        file.write_text(json.dumps(data))

    return change


def code(name: str) -> Callable[[Path], None]:
    """Code in the folder that would make the test's process exit, and an index that asks for it."""
    return lambda folder: (folder / name).write_text("import os; os._exit(3)") and None


BAD_PIPELINES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (lambda f: (f / "model_index.json").unlink(), "model_index.json cannot be read: FileNotFoundError"),
    "bad index": (text("[1]", "model_index.json"), "holds a list, not an object"),
    "no class": (index("_class_name", value="Evil"), "names 'Evil', which is no pipeline of diffusers"),
    "a model's class": (index("_class_name", value="UNet2DModel"), "which is no pipeline"),
    "custom class": (index("_class_name", value=["evil", "Evil"]), "which is no pipeline"),
    "foreign library": (index("scheduler", value=["os", "system"]), "a component 'scheduler' from 'os', which is not"),
    "library of one's own": (index("scheduler", value=["evil", "E"]), "from 'evil', which is not trusted"),
    "name with a path": (index("../unet", value=["diffusers", "UNet2DModel"]), "names a component '../unet'"),
    "odd component": (index("scheduler", value=["diffusers"]), "which is not trusted"),
    "code": (code("evil.py"), r"holds Python code \(evil.py\), which fxprune does not run"),
    "code beside a component": (code("scheduler/diffusers.py"), r"holds Python code \(diffusers.py\)"),
    "component elsewhere": (put("components", value=["../unet"]), "'../unet' is no name of a component"),
    "component unknown": (put("components", value=["vae"]), "'unet' from 'fxprune.pretrained', which is not trusted"),
    "component not in the index": (
        put("components", value=["unet", "vae"]),
        "does not name the pruned component 'vae'",
    ),
    "component missing": (lambda f: shutil.rmtree(f / "unet"), "there is no folder"),
    "scheduler missing": (lambda f: shutil.rmtree(f / "scheduler"), "cannot be read as a DDPMPipeline"),
    "pipeline in a pipeline": (
        lambda f: shutil.copy(f / "fxprune.json", f / "unet") and None,
        "holds a pipeline where",
    ),
    "dtype": (put("dtypes", value={"unet": "evil"}), "is 'evil', which is no dtype"),
    "files": (put("files", value=[1]), r"files\[0\] is a int, not a str"),
}


@pytest.mark.parametrize("case", BAD_PIPELINES)
def test_a_damaged_pipeline_is_refused(tmp_path: Path, folders: Path, case: str) -> None:
    damage, message = BAD_PIPELINES[case]
    folder = shutil.copytree(folders / "pipeline", tmp_path / "p")
    damage(folder)
    with pytest.raises(SaveError, match=message):
        load(folder)
