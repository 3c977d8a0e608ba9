"""Stock shapes in a process that has no fxprune: the second table of docs/stock.md.

    python benchmarks/stock_fresh.py FOLDER [NAME ...]

Each model of `stock.py` loses 40 % of its parameters by magnitude and is saved by its library in FOLDER.  One new
process, in which fxprune cannot be imported, loads them all by their libraries and compares weights (bit for bit) and
outputs (the largest difference over the largest output).
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import diffusers
import timm
import torch
import transformers
from stock import CLASSES, achieved, cut, inputs
from torch import nn

import fxprune
from fxprune.adapter import find_adapter
from fxprune.graph.modules import as_inputs

NONE = ("timm efficientnet_b0",)  # whose constructor takes no widths
HELD, WEIGHTS = "held.pt", "weights.pt"
LOADS = """
import importlib, sys, warnings
sys.modules["fxprune"] = None
warnings.filterwarnings("ignore")
import torch
from pathlib import Path
for folder in map(Path, sys.argv[1:]):
    held = torch.load(folder / "held.pt", weights_only=False)
    library = importlib.import_module(held["by"])
    if held["by"] == "timm":
        net, how = library.create_model(f"local-dir:{folder}", pretrained=True), "create_model"
    elif held["by"] == "torchvision":
        net, how = held["class"](**held["config"]), f"{held['class'].__name__}(**config)"
        net.load_state_dict(torch.load(folder / "weights.pt"), strict=True)
    else:
        name = held["class"].__name__
        loader = "AutoModelForCausalLM" if name.endswith("ForCausalLM") else name
        net = getattr(library, loader).from_pretrained(folder, local_files_only=True)
        how = f"{loader}.from_pretrained"
    state = net.state_dict()
    same = state.keys() == held["state"].keys() and all(torch.equal(state[k], t) for k, t in held["state"].items())
    with torch.no_grad():
        out = net.eval()(*held["args"], **held["kwargs"])
    if not isinstance(out, torch.Tensor):
        out = next(x for x in out.values() if isinstance(x, torch.Tensor))
    error = float((out - held["out"]).abs().max() / held["out"].abs().max())
    told = "equal" if same else "DIFFER"
    print(f"| {held['label']} | {held['gone']} % | `{how}` | {told} | {error:.0e} |", flush=True)
"""


def first(out: Any) -> torch.Tensor:
    """The first tensor of what a model returns."""
    return out if isinstance(out, torch.Tensor) else next(x for x in out.values() if isinstance(x, torch.Tensor))


def saved(name: str, net: nn.Module, folder: Path) -> Path:
    """A pruned model by its library's own save, with what the other process compares."""
    folder = folder / "".join(c if c.isalnum() else "_" for c in name)
    small = cut(net, 0.4, shape="stock")
    if isinstance(small, Exception):
        raise small
    own = inputs(net)
    args, kwargs = as_inputs(find_adapter(net).example_inputs(net) if own is None else own)
    with torch.no_grad():
        out = first(small(*args, **kwargs))
    library = type(small).__module__.partition(".")[0]
    held = {"by": library, "class": type(small), "label": name, "gone": achieved(small)}
    held |= {"args": args, "kwargs": kwargs, "state": small.state_dict(), "out": out}
    if library == "timm":
        timm.models.save_for_hf(small, str(folder))
    elif library == "torchvision":
        folder.mkdir(exist_ok=True)
        torch.save(small.state_dict(), folder / WEIGHTS)
        made = find_adapter(small).constructor(small)
        assert made is not None
        held["config"] = dict(made.config)
    else:
        small.save_pretrained(folder)
    torch.save(held, folder / HELD)
    return folder


def main(folder: Path, names: list[str]) -> None:
    """Prune and save each, then load all in one process."""
    folder.mkdir(parents=True, exist_ok=True)
    done = []
    for name in names or CLASSES:
        if name in NONE:
            continue
        torch.manual_seed(0)
        net = CLASSES[name]().eval()
        with torch.no_grad():  # some heads start at zero
            for p in net.parameters():
                p.add_(0.02 * torch.randn(p.shape))
        try:
            done.append(saved(name, net, folder))
        except fxprune.FxPruneError as e:
            print(f"{name}: {e}", file=sys.stderr, flush=True)
    print("| class | gone | loaded by | weights | outputs |\n|---|---|---|---|---|", flush=True)
    subprocess.run([sys.executable, "-c", LOADS, *map(str, done)], check=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    diffusers.logging.set_verbosity_error()
    main(Path(sys.argv[1]), sys.argv[2:])
