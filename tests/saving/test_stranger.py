"""A folder that anybody may have written: nothing of it is run or fetched, and no more is built than it holds."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import socket
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import fxprune
from fxprune.errors import SaveError, printable
from fxprune.planning.plan import Plan
from fxprune.saving.configs import require_no_code, require_plain
from fxprune.saving.files import require_data
from fxprune.saving.header_reading import read
from fxprune.saving.isolation import isolated, within

INFO = {"kind": "parameter", "shape": [1], "dtype": "float32", "requires_grad": False, "channels_last": False}
HEADER = {
    "format": 1, "kind": "model", "versions": {}, "metrics": None, "plan": None, "earlier": [], "seed": None,
    "tied": {}, "changes": [], "forward": "module", "checks": [], "held": [], "tensors": {"a": INFO},
}  # fmt: skip


def small() -> nn.Module:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    return fxprune.prune(net, "magnitude", 0.4, example_inputs=torch.ones(1, 8), progress=False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fxprune.save(small(), tmp_path_factory.mktemp("saved") / "m")


def plain_net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def written(folder: Path, name: str, config: dict[str, Any]) -> Path:
    """A folder that names a class of a library, with that config and one small tensor."""
    library = "transformers" if "model_type" in config else "diffusers"
    recipe = {"_class_name": name, "config": config} if library == "transformers" else config
    adapter = library if library == "transformers" else None
    data = {**HEADER, "class": {"module": library, "name": name}, "adapter": adapter, "config": recipe}
    folder.mkdir()
    (folder / "fxprune.json").write_text(json.dumps(data))
    safetensors.torch.save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    return folder


# ---- configs ------------------------------------------------------------------------------------------------------

FETCHED: dict[str, tuple[dict[str, Any], str]] = {
    "auto_map": ({"auto_map": {"AutoModel": "evil.Evil"}}, "auto_map.AutoModel = 'evil.Evil', which names code"),
    "auto_map in a decoder": ({"decoder": {"auto_map": {"AutoModel": "x--evil.E"}}}, "names code"),
    "auto_map in a list": ({"parts": [{"auto_map": "evil.Evil"}]}, "names code"),
    "trust": ({"text_config": {"trust_remote_code": True}}, "names code"),
    "a hub's model": ({"backbone": "hf-hub:attacker/evil"}, "is something to fetch"),
    "a backbone by name": ({"encoder": {"backbone": "resnet18"}}, "is something to fetch"),
    "a kernel": ({"_attn_implementation": "attacker/kernel"}, "is something to fetch"),
    "a kernel's revision": ({"attn_implementation": "attacker/kernel@main:fn"}, "is something to fetch"),
    "an address": ({"vocab": "https://evil.example/x"}, "is something to fetch"),
    "a tokenizer": ({"tokenizer": "gpt2"}, "is something to fetch"),
    "a base model": ({"pretrained_model_name_or_path": "gpt2"}, "is something to fetch"),
    "a million million layers": ({"num_layers": 10**12}, "is larger than the folder's tensors explain"),
    "a minus": ({"num_layers": -(10**12)}, "is larger than the folder's tensors explain"),
    "deep": ({"a": json.loads("[" * 100 + "1" + "]" * 100)}, "nested deeper"),
}


@pytest.mark.parametrize("case", FETCHED)
def test_a_config_that_asks_for_more_is_refused(case: str) -> None:
    config, message = FETCHED[case]
    with pytest.raises(SaveError, match=message):
        require_plain({"model_type": "bert", **config}, 10)


def test_a_config_of_plain_values_passes() -> None:
    config = {
        "_name_or_path": "google/bert", "id2label": {"0": "T-shirt/top"}, "auto_map": None, "backbone": None,
        "act": "silu", "sizes": [1, 2.5, float("inf")], "rope_theta": 5e6, "tokenizer_class": "BertTokenizer",
        "nested": {"dropout": 0.1, "flag": True}, "backbone_config": {"model_type": "resnet"},
    }  # fmt: skip
    before = copy.deepcopy(config)
    require_plain(config, 10)
    require_no_code(config)
    assert config == before


BUILT: dict[str, tuple[str, dict[str, Any], str]] = {
    "code of a decoder": (
        "EncoderDecoderModel",
        {"model_type": "encoder-decoder", "decoder": {"model_type": "gpt2", "auto_map": {"AutoModel": "evil.Evil"}}},
        "names code",
    ),
    "a backbone of the hub": (
        "TimmBackbone",
        {"model_type": "timm_backbone", "backbone": "hf-hub:attacker/evil"},
        "is something to fetch",
    ),
    "a million layers": (
        "BertModel",
        {"model_type": "bert", "num_hidden_layers": 10**6, "hidden_size": 4, "num_attention_heads": 1, "vocab_size": 8},
        "registers more tensors than the folder explains, which lists 1 tensors of 1 elements",
    ),
    "many layers of diffusers": (
        "UNet2DModel",
        {"layers_per_block": 10**5, "block_out_channels": [4], "norm_num_groups": 1,
         "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
        "registers more tensors",
    ),
    "a table of positions": (
        "PixArtTransformer2DModel",
        {"sample_size": 20000, "num_attention_heads": 1, "attention_head_dim": 64, "patch_size": 1, "num_layers": 1,
         "cross_attention_dim": 64},
        "computes more numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BUILT)
def test_no_more_is_built_than_the_folder_explains(tmp_path: Path, case: str) -> None:
    name, config, message = BUILT[case]
    folder = written(tmp_path / "m", name, config)
    tracemalloc.start()
    try:
        with pytest.raises(SaveError, match=message):
            fxprune.load(folder)
        assert tracemalloc.get_traced_memory()[1] < 500e6
    finally:
        tracemalloc.stop()


def test_shapes_that_the_weights_do_not_bear_out_explain_nothing(tmp_path: Path) -> None:
    name, config, message = BUILT["a table of positions"]
    folder = written(tmp_path / "m", name, config)
    data = json.loads((folder / "fxprune.json").read_text())
    data["tensors"]["a"]["shape"] = [2**62]
    (folder / "fxprune.json").write_text(json.dumps(data))
    with pytest.raises(SaveError, match=message):
        fxprune.load(folder)


# ---- while it is built ----------------------------------------------------------------------------------------------

REACHING: dict[str, Callable[[], object]] = {
    "an address": lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
    "a name": lambda: socket.getaddrinfo("localhost", 80),
    "a program": lambda: subprocess.run(["true"], check=False),
    "a shell": lambda: os.system("true"),
    "a question": lambda: input("run it? "),
}


@pytest.mark.parametrize("case", REACHING)
def test_what_is_built_reaches_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with isolated(), pytest.raises(PermissionError, match="which fxprune refuses"):
        REACHING[case]()
    assert subprocess.run(["true"], check=False).returncode == 0, "only within"


def test_building_stops_at_what_is_listed() -> None:
    with within(10, 1000):
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(10)))
    with pytest.raises(SaveError, match="registers more tensors"), within(10, 1000):
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(1000)))
    with pytest.raises(SaveError, match="has more modules"), within(10, 1000):
        nn.Sequential(*(nn.ReLU() for _ in range(30_000)))
    with pytest.raises(SaveError, match="computes more numbers"), within(10, 1000):
        torch.zeros(10**12)
    with pytest.raises(SaveError, match="computes more numbers"), within(10, 1000):
        sum(torch.ones(10**6).cumsum(0)[0] for _ in range(100))
    nn.Sequential(*(nn.ReLU() for _ in range(30_000)))  # nothing is left behind


def test_work_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.saving.isolation.SECONDS", 0.2)
    with pytest.raises(SaveError, match="takes longer than the folder explains"), within(1, 1):
        endless()


def endless() -> None:
    while True:
        with contextlib.suppress(Exception):  # as constructors do
            sum(range(1000))


# ---- files ----------------------------------------------------------------------------------------------------------


def replaced(name: str, how: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        how(folder / name)

    return damage


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe for weights": (replaced("model.safetensors", os.mkfifo), "model.safetensors is a pipe"),
    "a pipe for the header": (replaced("fxprune.json", os.mkfifo), "fxprune.json is a pipe"),
    "a pipe for an index": (replaced("model.safetensors.index.json", os.mkfifo), "is a pipe"),
    "a device": (replaced("README.md", lambda p: p.symlink_to("/dev/zero")), "is a link to /dev/zero"),
    "a device for the header": (replaced("fxprune.json", lambda p: p.symlink_to("/dev/zero")), "is a device"),
    "a file elsewhere": (replaced("x.json", lambda p: p.symlink_to("/etc/passwd")), "is a link to /etc/passwd"),
    "a folder elsewhere": (replaced("x", lambda p: p.symlink_to("/etc")), "is a link to /etc"),
    "a link to itself": (replaced("x", lambda p: p.symlink_to(p)), "leads nowhere"),
    "a link to nothing": (replaced("x", lambda p: p.symlink_to("gone")), "leads nowhere"),
}


@pytest.mark.parametrize("case", FILES)
def test_only_regular_files_are_read(tmp_path: Path, case: str) -> None:
    damage, message = FILES[case]
    folder = fxprune.save(small(), tmp_path / "m")
    damage(folder)
    with pytest.raises(SaveError, match=message):
        fxprune.load(folder, plain_net())


def test_links_of_a_hubs_cache_and_inside_the_folder_are_followed(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0f"
    blobs.mkdir(parents=True)
    fxprune.save(small(), folder)
    os.rename(folder / "model.safetensors", blobs / "aa")
    (folder / "model.safetensors").symlink_to("../../blobs/aa")
    (folder / "again.md").symlink_to("README.md")
    assert isinstance(fxprune.load(folder, plain_net()), nn.Sequential)
    (blobs / "aa").unlink()
    with pytest.raises(SaveError, match="leads nowhere"):
        require_data(folder)


# ---- text -----------------------------------------------------------------------------------------------------------

EVIL = "\x1b]0;title\x07\x1b[2J\u202e\x9b31m\u2028"


def harmless(text: str) -> bool:
    return not any(c in text for c in "\x1b\x07\u202e\x9b\u2028")


def test_what_steers_a_terminal_is_shown_as_its_code() -> None:
    assert printable("a\tb\nüß字😀") == "a\tb\nüß字😀"
    assert printable(EVIL) == r"\x1b]0;title\x07\x1b[2J\u202e\x9b31m\u2028"
    assert printable("\ud800") == r"\ud800"
    assert str(SaveError(EVIL)) == printable(EVIL)


def test_a_plan_a_report_and_a_header_print_no_escapes(tmp_path: Path) -> None:
    folder = fxprune.save(small(), tmp_path / "m")
    data = json.loads((folder / "fxprune.json").read_text())
    data["versions"] = {EVIL: EVIL}
    data["plan"]["criterion"] = data["plan"]["of"] = EVIL
    data["plan"]["cost"][EVIL] = data["plan"]["cost"]["params"]
    data["checks"] = [{"name": EVIL, "error": 0, "tolerance": 1}]
    del data["checksums"]
    (folder / "fxprune.json").write_text(json.dumps(data))
    header = read(folder)
    assert "title" in repr(header)
    assert harmless(repr(header))
    plan = Plan.from_json(json.dumps(data["plan"]))
    assert "title" in repr(plan)
    assert harmless(repr(plan) + repr(plan.keep("*")))
    report = fxprune.report(fxprune.load(folder, plain_net()))
    assert harmless(repr(report))


def test_inspect_prints_no_escapes(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fxprune.cli import app

    folder = fxprune.save(small(), tmp_path / "m", metrics={"fid": EVIL, EVIL: 1})
    done = CliRunner().invoke(app, ["inspect", str(folder)])
    assert done.exit_code == 0, done.output
    assert "title" in done.output
    assert harmless(done.output)


# ---- what the disk forgot -------------------------------------------------------------------------------------------


def flipped(path: Path, at: int) -> None:
    held = bytearray(path.read_bytes())
    held[at] ^= 1
    path.write_bytes(held)


def test_a_bit_that_changed_is_told(saved: Path, tmp_path: Path) -> None:
    folder = fxprune.save(small(), tmp_path / "m")
    flipped(folder / "model.safetensors", -1)
    with pytest.raises(SaveError, match=r"model.safetensors is not as it was written \(its checksum differs\)"):
        fxprune.load(folder, plain_net())
    folder = fxprune.save(small(), folder)
    text = (folder / "fxprune.json").read_text()
    (folder / "fxprune.json").write_text(text.replace('"achieved": 0.', '"achieved": 1.', 1))
    with pytest.raises(SaveError, match=r"fxprune.json is not as it was written"):
        fxprune.load(folder, plain_net())
    data = json.loads(text)
    del data["checksums"]
    (folder / "fxprune.json").write_text(json.dumps(data))
    assert isinstance(fxprune.load(folder, plain_net()), nn.Sequential), "folders of older versions have none"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "", "a//b", "a/../b", "a\0"])
def test_checksums_of_files_elsewhere_are_refused(saved: Path, tmp_path: Path, name: str) -> None:
    folder = fxprune.save(small(), tmp_path / "m")
    data = json.loads((folder / "fxprune.json").read_text())
    data["checksums"][name] = "0"
    (folder / "fxprune.json").write_text(json.dumps(data))
    with pytest.raises(SaveError, match="is no name of a file in it"):
        fxprune.load(folder, plain_net())
