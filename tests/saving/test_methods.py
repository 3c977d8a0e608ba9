"""A pruned model's own `save_pretrained`, `push_to_hub` and config: what they write fxprune reads, or they refuse."""

import copy
import gc
import io
import json
import pickle
import weakref
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
import torch
from saved_nets import tiny_unet, unet_inputs
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import fxprune
from fxprune import SaveError
from fxprune.saving.save import load, save

TOKENS = torch.arange(8)[None]


class Hubbed(nn.Module, huggingface_hub.PyTorchModelHubMixin):
    """A model of one's own with huggingface_hub's methods."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


@pytest.fixture(scope="module")
def unet() -> Any:
    torch.manual_seed(0)
    return fxprune.prune(tiny_unet().eval(), "magnitude", 0.3, progress=False)


@pytest.fixture(scope="module")
def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    return fxprune.prune(LlamaForCausalLM(config).eval(), "magnitude", 0.3, progress=False)


@pytest.fixture(scope="module")
def hubbed() -> Any:
    torch.manual_seed(0)
    return fxprune.prune(Hubbed().eval(), "magnitude", 0.3, example_inputs=torch.ones(1, 4), progress=False)


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))  # noqa: S301 - our own


def alike(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return list(mine) == list(other) and all(torch.equal(mine[k], other[k]) for k in mine)


# ---- save_pretrained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet", "llama", "hubbed"])
def test_what_save_pretrained_writes_is_read(tmp_path: Path, request: pytest.FixtureRequest, name: str) -> None:
    small = request.getfixturevalue(name)
    small.save_pretrained(tmp_path / "m")
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["README.md", "fxprune.json", "model.safetensors"]
    assert alike(small, load(tmp_path / "m", Hubbed if name == "hubbed" else None))


def test_copies_write_themselves(tmp_path: Path, unet: Any) -> None:
    torch.save(unet, buffer := io.BytesIO())
    buffer.seek(0)
    for made in (copy.deepcopy(unet), pickled(unet), torch.load(buffer, weights_only=False)):
        with torch.no_grad():
            made.conv_in.weight += 1
        made.save_pretrained(tmp_path / "m")
        assert alike(made, load(tmp_path / "m"))


def test_a_method_keeps_no_model_alive(hubbed: Any) -> None:
    made = copy.deepcopy(hubbed)
    method, gone = made.save_pretrained, weakref.ref(made)
    gc.disable()
    try:
        del made
        assert gone() is None
    finally:
        gc.enable()
    with pytest.raises(SaveError, match="the model that save_pretrained belongs to is gone"):
        method("somewhere")


def test_other_files_stay(tmp_path: Path, llama: Any) -> None:
    """As a trainer's, which keeps its own beside the model; and a save of more files gives way to one of fewer."""
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("mine")
    llama.save_pretrained(tmp_path, max_shard_size=4000)
    assert (tmp_path / "model.safetensors.index.json").exists()
    llama.save_pretrained(tmp_path, is_main_process=True, save_function=torch.save)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"tokenizer.json", "README.md", "fxprune.json", "model.safetensors"}
    assert (tmp_path / "README.md").read_text() == "mine"
    assert alike(llama, load(tmp_path))


def test_a_stock_model_is_not_mixed_up_with_a_pruned_one(tmp_path: Path, unet: Any) -> None:
    tiny_unet().save_pretrained(tmp_path)
    with pytest.raises(SaveError, match=r"holds another model or pipeline \(config.json\).*name a new folder"):
        unet.save_pretrained(tmp_path)


def test_state_dict_is_what_is_written(tmp_path: Path, llama: Any) -> None:
    state = {k: v + 1 for k, v in llama.state_dict().items()}
    llama.save_pretrained(tmp_path / "m", state_dict=state)
    again = load(tmp_path / "m")
    assert all(torch.equal(v, state[k]) for k, v in again.state_dict().items())
    with pytest.raises(SaveError, match="does not fit this pruned LlamaForCausalLM"):
        llama.save_pretrained(tmp_path / "n", state_dict={"x": torch.ones(1)})


def test_what_fxprune_does_not_write_is_refused(tmp_path: Path, unet: Any) -> None:
    with pytest.raises(SaveError, match="use_flashpack=True is no option for a pruned model"):
        unet.save_pretrained(tmp_path / "m", use_flashpack=True)
    with pytest.raises(SaveError, match="safetensors alone"):
        unet.save_pretrained(tmp_path / "m", safe_serialization=False)
    unet.save_pretrained(tmp_path / "m", is_main_process=False)
    assert not (tmp_path / "m").exists()


def test_a_model_that_its_config_describes_is_its_librarys(tmp_path: Path) -> None:
    small = fxprune.prune(tiny_unet().eval(), "magnitude", 0.0, progress=False)
    small.save_pretrained(tmp_path)
    assert alike(small, diffusers.UNet2DModel.from_pretrained(tmp_path))


def test_a_part_of_a_pruned_model_is_refused(tmp_path: Path, llama: Any) -> None:
    for write in (llama.model.save_pretrained, llama.model.push_to_hub):
        with pytest.raises(SaveError, match=r"this LlamaModel is part of a pruned model.*fxprune.save\(model, DIR\)"):
            write(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_adapter_is_written_by_its_library(tmp_path: Path, llama: Any) -> None:
    peft = pytest.importorskip("peft", minversion="0.22")
    small = copy.deepcopy(llama)
    small.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    small.save_pretrained(tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    again = copy.deepcopy(llama)
    again.load_adapter(str(tmp_path / "m"))
    assert torch.equal(again(TOKENS).logits, small(TOKENS).logits)


def test_generation_settings_come_back(tmp_path: Path, llama: Any) -> None:
    llama.generation_config.max_new_tokens = 7
    llama.save_pretrained(tmp_path / "m")
    assert load(tmp_path / "m").generation_config.max_new_tokens == 7


# ---- configs -----------------------------------------------------------------------------------------------------


def test_a_config_of_the_unpruned_model_makes_none(tmp_path: Path, unet: Any) -> None:
    save(unet, tmp_path / "m")
    for small in (unet, copy.deepcopy(unet), pickled(unet), load(tmp_path / "m")):
        with pytest.raises(SaveError, match=r"config of a pruned model.*fxprune.save"):
            type(small).from_config(small.config)
        assert small.config["sample_size"] == small.config.sample_size == small.config.get("sample_size") == 8
    dense = type(unet).from_config(dict(unet.config))
    assert dense.num_parameters() > unet.num_parameters()


def test_averaged_weights_are_refused_with_the_line(tmp_path: Path, unet: Any) -> None:
    from diffusers.training_utils import EMAModel

    ema = EMAModel(unet.parameters(), model_cls=type(unet), model_config=unet.config)
    with pytest.raises(SaveError, match=r"ema.copy_to\(model.parameters\(\)\) and fxprune.save\(model, DIR\)"):
        ema.save_pretrained(tmp_path / "m")
    assert not (tmp_path / "m").exists()
    made = copy.deepcopy(unet)
    ema.copy_to(made.parameters())
    assert alike(load(save(made, tmp_path / "m")), unet)


# ---- pipelines ---------------------------------------------------------------------------------------------------


def test_a_pipelines_own_folder_is_read(tmp_path: Path, unet: Any) -> None:
    """Where the pruned model was put into a pipeline that was made with another."""
    pipeline = diffusers.DDPMPipeline(unet=tiny_unet(), scheduler=diffusers.DDPMScheduler(num_train_timesteps=50))
    pipeline.unet = unet
    pipeline.save_pretrained(tmp_path / "p")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "p")
    assert type(again.unet) is type(unet)
    for made in (again.unet, load(tmp_path / "p").unet, fxprune.load_pipeline(tmp_path / "p").unet):
        assert alike(made, unet)
    again.save_pretrained(tmp_path / "q")
    assert alike(load(tmp_path / "q").unet, unet)
    pipeline.unet = tiny_unet()
    pipeline.save_pretrained(tmp_path / "r")
    assert json.loads((tmp_path / "r" / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DModel"]


def test_a_variant_of_a_pipeline(tmp_path: Path, unet: Any) -> None:
    half = copy.deepcopy(unet).half()
    pipeline = diffusers.DDPMPipeline(unet=half, scheduler=diffusers.DDPMScheduler(num_train_timesteps=50))
    pipeline.save_pretrained(tmp_path / "p", variant="fp16")
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "p", variant="fp16", torch_dtype=torch.float16)
    assert alike(again.unet, half)
    assert alike(fxprune.load_pipeline(tmp_path / "p", variant="fp16").unet, half)


# ---- the hub -----------------------------------------------------------------------------------------------------


class Hub:
    """Stands for huggingface_hub: what is uploaded lies in a folder, and is fetched from there."""

    root = Path()

    def __init__(self, token: str | None = None) -> None:
        self.token = token

    def create_repo(self, name: str, private: bool | None = None, exist_ok: bool = False) -> Any:
        assert exist_ok
        return type("Url", (), {"repo_id": name})

    def upload_folder(self, *, repo_id: str, folder_path: str, path_in_repo: str, **_: Any) -> str:
        import shutil

        shutil.copytree(folder_path, self.root / repo_id / path_in_repo, dirs_exist_ok=True)
        return "commit"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def fetched(name: str, **options: Any) -> str:
        if not (tmp_path / name).exists():
            raise FileNotFoundError(f"404 {name}")
        return str(tmp_path / name)

    monkeypatch.setattr(Hub, "root", tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    return tmp_path


@pytest.mark.parametrize("name", ["unet", "llama", "hubbed"])
def test_a_pushed_model_is_loaded_by_its_name(hub: Path, request: pytest.FixtureRequest, name: str) -> None:
    small = request.getfixturevalue(name)
    assert small.push_to_hub("me/small", subfolder="inner", private=True) == "commit"
    stock = Hubbed if name == "hubbed" else None
    assert alike(load("me/small", stock, subfolder="inner"), small)
    line = f'fxprune.load("me/small"{", model=Hubbed(...)" if stock else ""})'
    assert line in (hub / "me" / "small" / "inner" / "README.md").read_text()
    with pytest.raises(SaveError, match=r"blocking=True is no option"):
        small.push_to_hub("me/small", blocking=True)


def test_what_is_no_folder_and_no_model_of_the_hub(hub: Path, unet: Any) -> None:
    with pytest.raises(SaveError, match=r"no folder me/none, and no model of that name came from the hub: .*404"):
        load("me/none")
    with pytest.raises(SaveError, match="must be a folder inside"):
        load("me/none", subfolder="../x")


# ---- options of load ---------------------------------------------------------------------------------------------


def test_variants_stand_beside_each_other(tmp_path: Path, unet: Any) -> None:
    half = copy.deepcopy(unet).half()
    save(half, tmp_path / "m", variant="fp16", max_shard_size=100_000)
    with pytest.raises(SaveError, match=r"it has no fxprune.json; load it with variant='fp16'"):
        load(tmp_path / "m")
    save(unet, tmp_path / "m")
    save(unet, tmp_path / "m")
    assert alike(load(tmp_path / "m", variant="fp16"), half)
    assert alike(load(tmp_path / "m"), unet)
    unet.save_pretrained(tmp_path / "m", variant="ema")
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert {"fxprune.json", "fxprune.fp16.json", "fxprune.ema.json", "model.ema.safetensors"} < names
    with pytest.raises(SaveError, match=r"it has no fxprune\.int8\.json"):
        load(tmp_path / "m", variant="int8")
    with pytest.raises(SaveError, match="must be letters, digits and underscores"):
        load(tmp_path / "m", variant="../x")
    (tmp_path / "m" / "model.ema.safetensors").write_bytes((tmp_path / "m" / "fxprune.json").read_bytes())
    with pytest.raises(SaveError, match="damaged"):
        load(tmp_path / "m", variant="ema")


def test_dtype_and_subfolder(tmp_path: Path, unet: Any) -> None:
    save(unet, tmp_path / "m" / "unet")
    for given in (torch.float16, "float16"):
        made = load(tmp_path / "m", torch_dtype=given, subfolder="unet")
        assert {p.dtype for p in made.parameters()} == {torch.float16}
    assert load(tmp_path / "m", subfolder="unet", torch_dtype="auto").dtype == torch.float32
    for wrong in ("float17", torch.int8):
        with pytest.raises(SaveError, match="must be a floating dtype"):
            load(tmp_path / "m", subfolder="unet", torch_dtype=wrong)
    with torch.no_grad():
        assert torch.isfinite(load(tmp_path / "m", subfolder="unet")(*unet_inputs()).sample).all()


# ---- cards -------------------------------------------------------------------------------------------------------


def test_lists_of_a_card_survive(tmp_path: Path, unet: Any) -> None:
    (tmp_path / "base").mkdir()
    text = "---\nbase_model:\n- a/b\n- c/d\nlicense: other\nlicense_name: mine\n"
    text += "tags: [art, fxprune]\nlanguage:\n- en\n---\n# x\n"
    (tmp_path / "base" / "README.md").write_text(text)
    net = copy.deepcopy(unet)
    net.register_to_config(_name_or_path=str(tmp_path / "base"))
    one = save(net, tmp_path / "one")
    two = save(load(one), tmp_path / "two")
    for folder in (one, two):
        data = huggingface_hub.ModelCard.load(folder / "README.md").data
        assert data.base_model == ["a/b", "c/d"]
        assert (data.license, data.license_name, data.language) == ("other", "mine", ["en"])
        assert data.library_name == "fxprune"
        assert data.tags == ["fxprune", "structural-pruning", "diffusers", "art"]
    net.register_to_config(_name_or_path="some/parent")
    card = huggingface_hub.ModelCard.load(save(net, tmp_path / "three") / "README.md")
    assert card.data.base_model == "some/parent"
