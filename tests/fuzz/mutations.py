"""A saved folder, changed as the disk, a hand or an attacker might: one to three changes, drawn at random."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARK = "EXECUTED"  # a file that whatever runs a folder's code leaves in the folder
PYTHON = "import pathlib; pathlib.Path({mark!r}).touch()\nclass Evil: pass\n"
ESCAPE = "\x1b]0;title\x07\x1b[2J\u202e\x9b31m"
ODD: list[Callable[[random.Random], Any]] = [
    lambda r: None, lambda r: True, lambda r: "", lambda r: [], lambda r: {}, lambda r: -1, lambda r: 0,
    lambda r: r.choice([2**31, 2**63, 10**12, 10**30, -(10**12), 10**4, 10**5, 10**6]), lambda r: 1e308,
    lambda r: float("nan"), lambda r: float("inf"), lambda r: 0.5, lambda r: "x" * 10**6, lambda r: [0] * 10**5,
    lambda r: [[[[[1]]]]], lambda r: json.loads("[" * 500 + "]" * 500), lambda r: {"a": {"b": {"c": None}}},
    lambda r: ESCAPE, lambda r: "\ud800", lambda r: "\0", lambda r: "../../../etc/passwd", lambda r: "/etc/passwd",
    lambda r: r.choice(["attacker/evil", "hf-hub:attacker/evil", "https://evil.example/x", "attacker/kernel@main:fn"]),
    lambda r: r.choice(["os.system", "subprocess.Popen", "builtins.eval", "evil.Evil", "torch.load", "__import__"]),
    lambda r: r.choice(["UNet2DModel", "BertModel", "AutoencoderKL", "DDPMPipeline", "GPT2Model", "SiLU", "Module"]),
    lambda r: r.choice(["diffusers", "transformers", "torch.nn", "fxprune", "os", "timm", "evil"]),
    lambda r: r.choice(["gelu", "relu", "float16", "float64", "complex64", "sdpa", "flash_attention_2", "eager"]),
    lambda r: {"auto_map": {"AutoModel": "evil.Evil"}}, lambda r: [None, None], lambda r: ["evil", "Evil"],
]  # fmt: skip
KEYS: list[tuple[str, Any]] = [
    ("auto_map", {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}), ("trust_remote_code", True),
    ("custom_pipeline", "attacker/evil"), ("_attn_implementation", "attacker/kernel"), ("use_kernels", True),
    ("backbone", "resnet18"), ("use_pretrained_backbone", True), ("use_timm_backbone", True),
    ("tokenizer", "gpt2"), ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    ("quantization_config", {"quant_method": "gguf"}), ("torch_dtype", "evil"), ("dtype", "float16"),
    ("_name_or_path", "attacker/evil"), ("_class_name", ["evil", "Evil"]), ("_module", "evil.Evil"),
    ("adapter_config", {"peft_type": "LORA"}), ("architectures", ["Evil"]), ("is_decoder", True),
    ("pruned_heads", {"0": [0, 1]}), ("num_hidden_layers", 10**6), ("layers_per_block", 10**5), ("sample_size", 20000),
    ("max_position_embeddings", 2**31), ("vocab_size", 2**40), ("__class__", "evil"), ("__dict__", {}), ("self", 1),
    ("generation_config", {"cache_implementation": "evil"}), ("output_attentions", True), ("pad_token_id", 10**9),
]  # fmt: skip


def mutate(folder: Path, r: random.Random) -> str:
    """Change a folder; what was done, in words."""
    told = []
    for _ in range(r.choice([1, 1, 1, 2, 3])):
        files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
        if not files:
            break
        path = r.choice(files)
        if path.suffix == ".json" and r.random() < 0.75:
            change: Any = r.choice([_value, _value, _value, _key, _key, _text])
        elif path.suffix == ".safetensors" and r.random() < 0.6:
            change = _tensors
        else:
            change = r.choice([_flip, _flip, _cut, _replaced, _replaced, _extra, _gone])
        told.append(f"{change.__name__[1:]} {path.relative_to(folder)}: {change(path, folder, r)}")
    return "; ".join(told)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _flip(path: Path, folder: Path, r: random.Random) -> str:
    held = bytearray(path.read_bytes())
    count = r.choice([1, 1, 3, 20])
    for _ in range(count if held else 0):
        held[r.randrange(min(len(held), r.choice([16, 2000, len(held)])))] = r.randrange(256)
    path.write_bytes(held)
    return f"{count} bytes"


def _cut(path: Path, folder: Path, r: random.Random) -> str:
    held = path.read_bytes()
    size = r.randrange(len(held) + 1)
    path.write_bytes(held[:size] if r.random() < 0.7 else held + r.randbytes(r.choice([1, 100, 10**5])))
    return f"{len(held)} bytes to {path.stat().st_size}"


def _gone(path: Path, folder: Path, r: random.Random) -> str:
    path.unlink()
    return ""


def _replaced(path: Path, folder: Path, r: random.Random) -> str:
    """Another kind of file under its name."""
    kept = path.read_bytes()
    path.unlink()
    what = r.choice(["empty", "folder", "pipe", "device", "zeros", "passwd", "self", "nothing", "elsewhere", "socket"])
    if what == "empty":
        path.touch()
    elif what == "folder":
        path.mkdir()
        (path / "inner").write_bytes(kept)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
        except OSError:
            path.symlink_to("/dev/zero")
    elif what == "socket":
        _socket(path)
    elif what == "elsewhere":
        away = folder.with_name(f"{folder.name}-away")
        away.write_bytes(kept)
        path.symlink_to(away)
    else:
        path.symlink_to({"zeros": "/dev/zero", "passwd": "/etc/passwd", "self": path, "nothing": "gone"}[what])
    return what


def _socket(path: Path) -> None:
    here = os.getcwd()
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # the path of a socket is short
        try:
            made.bind(path.name)
        finally:
            os.chdir(here)


def _extra(path: Path, folder: Path, r: random.Random) -> str:
    """A file that nobody saved, most of them code."""
    python = PYTHON.format(mark=str(folder / MARK))
    pickled = f"cpathlib\nPath\n(V{folder / MARK}\ntRctouch\n.".encode()
    name, data = r.choice([
        ("evil.py", python), ("__init__.py", python), ("pipeline.py", python), ("modeling_evil.py", python),
        ("pytorch_model.bin", pickled), ("diffusion_pytorch_model.bin", pickled), ("model.pkl", pickled),
        ("config.json", json.dumps({"auto_map": {"AutoModel": "evil.Evil"}, "model_type": "evil"})),
        ("model.safetensors.index.json", json.dumps({"weight_map": {"a": "../../etc/passwd"}})),
        ("diffusion_pytorch_model.safetensors.index.json", json.dumps({"weight_map": {"a": "/etc/passwd"}})),
        ("adapter_config.json", json.dumps({"base_model_name_or_path": "attacker/evil", "peft_type": "LORA"})),
        ("generation_config.json", "{"), ("quantize_config.json", "{}"), ("evil.so", b"\x7fELF"), ("x" * 200, b"x"),
        ("requirements.txt", "evil"), ("setup.py", python), ("sitecustomize.py", python), ("torch.py", python),
    ])  # fmt: skip
    target = r.choice([path.parent, folder]) / name
    if not target.exists():
        target.write_bytes(data if isinstance(data, bytes) else data.encode())
    return name


# ---- JSON -----------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that nested data holds, down to a depth that Python can go."""
    if len(path) > 20:
        return []
    items = value.items() if isinstance(value, dict) else enumerate(value[:20]) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for k, v in items for p in _places(v, (*path, k))]


def _at(data: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        data = data[key]
    return data


def _edited(path: Path, r: random.Random, edit: Callable[[Any], str]) -> str:
    """Edit a file's JSON; its checksums go mostly, as an attacker would see to."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        return "no JSON any more"
    told = edit(data)
    if isinstance(data, dict) and r.random() < 0.9:
        data.pop("checksums", None)
        if (header := path.parent / "fxprune.json") != path and header.is_file():
            _forget(header)
    path.write_text(json.dumps(data), "utf-8", errors="surrogatepass")
    return told


def _forget(header: Path) -> None:
    try:
        held = json.loads(header.read_text("utf-8"))
        held.pop("checksums", None)
        header.write_text(json.dumps(held), "utf-8")
    except (ValueError, RecursionError, AttributeError, TypeError):
        return


def _value(path: Path, folder: Path, r: random.Random) -> str:
    def edit(data: Any) -> str:
        places = _places(data)
        if not places:
            return "nothing to change"
        # the config and what the header says of classes are worth more than its thousand sizes
        short = [p for p in places if not {"tensors", "plan", "checksums"} & set(p)]
        place = r.choice(short if short and r.random() < 0.6 else places)
        holder, old = _at(data, place[:-1]), _at(data, place)
        number = isinstance(old, (int, float)) and not isinstance(old, bool)
        new = old * r.choice([2, -1, 10, 1000, 10**7]) if number and r.random() < 0.5 else r.choice(ODD)(r)
        holder[place[-1]] = new
        return f"{'.'.join(map(str, place))} = {json.dumps(new)[:60]}"

    return _edited(path, r, edit)


def _key(path: Path, folder: Path, r: random.Random) -> str:
    def edit(data: Any) -> str:
        holders = [h for p in [(), *_places(data)] if isinstance(h := _at(data, p), dict) and "tensors" not in p]
        if not holders:
            return "nothing to add to"
        holder = r.choice(
            [h for h in (data, data.get("config") if isinstance(data, dict) else None) if isinstance(h, dict)]
            or holders
        )
        holder = r.choice(holders) if r.random() < 0.4 else holder
        if holder and r.random() < 0.3:
            del holder[key := r.choice(sorted(holder))]
            return f"without {key}"
        key, value = r.choice(KEYS)
        holder[key] = value
        return f"{key} = {json.dumps(value)[:60]}"

    return _edited(path, r, edit)


def _text(path: Path, folder: Path, r: random.Random) -> str:
    text = path.read_text("utf-8", errors="replace")
    what = r.choice(["deep", "number", "constant", "bom", "utf-16", "twice", "list", "cut", "spaces"])
    made: dict[str, Callable[[], bytes]] = {
        "deep": lambda: b"[" * 10**5, "number": lambda: (b'{"format": ' + b"9" * 10**5 + b"}"),
        "constant": lambda: r.choice([b"null", b"1", b'"x"', b"NaN", b"true"]),
        "bom": lambda: b"\xef\xbb\xbf" + text.encode("utf-8", "replace"), "utf-16": lambda: text.encode("utf-16",
        "replace"),
        "twice": lambda: text.replace("{", '{"format": 7, "config": {}, ', 1).encode("utf-8", "replace"),
        "list": lambda: f"[{text}]".encode("utf-8", "replace"),
        "cut": lambda: text[: r.randrange(len(text) + 1)].encode(),
        "spaces": lambda: b" " * 10**7 + text.encode("utf-8", "replace"),
    }  # fmt: skip
    path.write_bytes(made[what]())
    return what


# ---- tensors --------------------------------------------------------------------------------------------------------


def _tensors(path: Path, folder: Path, r: random.Random) -> str:
    """Change the header of a file of safetensors: eight bytes of length, JSON, data."""
    held = path.read_bytes()
    try:
        length = struct.unpack("<Q", held[:8])[0]
        header, data = json.loads(held[8 : 8 + length]), held[8 + length :]
        names = sorted(n for n in header if n != "__metadata__")
        name = r.choice(names)
        entry = header[name]
    except (ValueError, RecursionError, IndexError, struct.error, AttributeError, OverflowError):
        return "no header any more"
    what = r.choice(["rename", "drop", "shape", "dtype", "offsets", "extra", "length", "metadata", "twin", "nan"])
    if what in ("rename", "drop"):
        del header[name]
        header |= {r.choice([f"{name}x", "", ESCAPE, "../x", "__class__"]): entry} if what == "rename" else {}
    elif what == "shape" and isinstance(entry, dict):
        shape = entry.get("shape") or [1]
        entry["shape"] = r.choice([shape[::-1], [*shape, 1], [2**62], [-1], [7, 7], [], [0]])
    elif what == "dtype" and isinstance(entry, dict):
        entry["dtype"] = r.choice(["F16", "F64", "I8", "BOOL", "F8_E4M3", "evil", "BF16", 3])
    elif what == "offsets" and isinstance(entry, dict):
        entry["data_offsets"] = r.choice([[0, 2**62], [0, 0], [-1, 4], [8, 4], "x", [0]])
    elif what == "extra":
        header["evil.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    elif what == "metadata":
        header["__metadata__"] = r.choice([{"format": "evil"}, {"x": ESCAPE}, {"format": "pt", "a": "b" * 10**5}, [1]])
    elif what == "twin":
        header[f"{name}.twin"] = dict(entry)
    elif what == "nan":
        data = b"\xff" * len(data)
    text = json.dumps(header).encode()
    size = r.choice([2**63, 2**40, 0, 7, len(text) + 10**6]) if what == "length" else len(text)
    path.write_bytes(struct.pack("<Q", size) + text + data)
    if r.random() < 0.8 and (path.parent / "fxprune.json").is_file():
        _forget(path.parent / "fxprune.json")
    return f"{what} of {name}"


def copied(base: Path, folder: Path) -> Path:
    """A copy to change."""
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(base, folder))
