"""Every guide runs as it stands, from its first block to its last, on tiny models with random weights."""

from __future__ import annotations

import re
from pathlib import Path

import clockwork
import pytest
import torch
from accelerate.state import AcceleratorState

pytest.importorskip("diffusers")
from diffusion_nets import PIPELINES, model

GUIDES = Path(__file__).parent.parent / "docs" / "guides"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
NEEDS = {"trainers": "lightning", "timm": "timm", "detectors": "torchvision", "stable-diffusion": "peft"}
NOT_RUN = {"many-gpus", "troubleshooting"}  # a page of commands for several devices, and one of messages


def code(guide: Path) -> str:
    """A guide's Python with everything else as empty lines, so that line numbers stay the page's."""
    text, out, end = guide.read_text(encoding="utf-8"), "", 0
    for found in BLOCK.finditer(text):
        out += "\n" * text.count("\n", end, found.start(1)) + found[1]
        end = found.end(1)
    return out


@pytest.mark.parametrize("name", sorted(p.stem for p in GUIDES.glob("*.md") if p.stem not in NOT_RUN))
def test_guide_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(NEEDS.get(name, "torch"))
    monkeypatch.chdir(tmp_path)
    clockwork.install(monkeypatch)
    AcceleratorState._reset_state()
    torch.manual_seed(0)
    source = code(GUIDES / f"{name}.md")
    assert source.strip(), "a guide without Python belongs into NOT_RUN"
    if "path/to/stable-diffusion" in source:
        case = PIPELINES["sd1"]
        case.around(model(case.net)).save_pretrained("path/to/stable-diffusion")
    exec(compile(source, f"{name}.md", "exec"), {})


def test_every_guide_is_in_the_site_and_no_block_is_left_out_by_its_name() -> None:
    nav = (GUIDES.parent.parent / "mkdocs.yml").read_text(encoding="utf-8")
    for guide in GUIDES.glob("*.md"):
        assert f"guides/{guide.name}" in nav, guide
        assert "```py\n" not in guide.read_text(encoding="utf-8"), guide
