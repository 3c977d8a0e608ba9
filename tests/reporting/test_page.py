"""A report as a page: its figures are the plan's, it needs no network, and nothing in it is code of others."""

from __future__ import annotations

import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import fxprune
from fxprune import InputsError, SaveError
from fxprune.cli import app
from fxprune.reporting.anatomy import anatomy
from fxprune.reporting.report import causes


class Net(nn.Module):
    """A residual stream that meets a fixed number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 1))
        self.table = nn.Parameter(torch.randn(1, 1, 8, 8))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.table
        return self.head((x + self.branch(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return fxprune.prune(Net(), "magnitude", 0.4, example_inputs=torch.randn(2, 3, 8, 8), progress=False)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and v]


def test_layers_add_up_to_the_plan(small: nn.Module) -> None:
    made = fxprune.report(small)
    assert made.anatomy is not None
    for measure in ("params", "macs"):
        told = [getattr(layer, measure) for layer in made.anatomy.layers]
        assert (sum(a for a, _ in told), sum(b for _, b in told)) == pytest.approx(made.plan.costs[measure])
    shapes = {f"{x.name}.{n}": after for x in made.anatomy.layers for n, _, after in x.tensors}
    assert shapes["branch.0.weight"] == tuple(small.branch[0].weight.shape)
    assert {g.name: g.after for g in made.anatomy.groups} == {
        name: n - len(made.plan.removed.get(name, ())) for name, n in made.plan.sizes.items()
    }


def test_scores_tell_what_went_from_what_stays(small: nn.Module) -> None:
    made = fxprune.report(small)
    assert made.anatomy is not None
    cut = [g for g in made.anatomy.groups if g.gone]
    assert cut
    assert all(g.kept[0] >= g.gone[2] for g in cut)  # nothing has to go with others here


def test_what_is_held_adds_up() -> None:
    graph = fxprune.trace(Net(), torch.randn(2, 3, 8, 8))
    held = 0
    for name in graph.parameters:
        free = torch.zeros(graph.shapes[name], dtype=torch.bool)
        for d, axis in enumerate(graph.tensors[name]):
            if axis is not None:
                free |= torch.tensor(graph.component[axis] != 0).reshape(
                    [-1 if k == d else 1 for k in range(free.dim())]
                )
        held += int((~free).sum())
    total = sum(math.prod(graph.shapes[n]) for n in graph.parameters)
    assert held  # the head's bias and the table
    assert sum(c.share for c in causes(graph)) == pytest.approx(held / total)


def test_blocks_that_went_are_gone_from_the_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(_Residual(8) for _ in range(4)), nn.Linear(8, 2))
    small = fxprune.prune(net, "magnitude", 0.4, granularity="block", example_inputs=torch.randn(2, 8), progress=False)
    made = fxprune.report(small)
    assert made.plan.blocks
    assert made.anatomy is not None
    gone = [x for x in made.anatomy.layers if any(after is None for *_, after in x.tensors)]
    assert gone
    assert all(x.params[1] == x.macs[1] == 0 for x in gone)
    assert sum(x.params[1] for x in made.anatomy.layers) == made.plan.costs["params"][1]


class _Residual(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(n, 16), nn.GELU(), nn.Linear(16, n))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def test_the_page_is_whole_and_quotes_what_it_shows(small: nn.Module, tmp_path: Path) -> None:
    images = torch.zeros(3, 1, 4, 4)
    odd = '<script>alert("x")</script>'
    file = fxprune.report(small).to_html(tmp_path / "report.html", samples={odd: images}, name=odd)
    text = file.read_text()
    tags = _Tags()
    tags.feed(text)
    assert tags.tags.count("script") == 1  # its own
    assert all(link.startswith("data:") for link in tags.links)
    assert len([link for link in tags.links if link.startswith("data:image/png")]) == 1
    for name in ("branch.0", "stem", "head"):
        assert name in text


@pytest.mark.parametrize("images", [torch.zeros(3, 4, 4), torch.zeros(1, 2, 4, 4), torch.zeros(0, 3, 4, 4), "x"])
def test_odd_samples_are_refused(small: nn.Module, tmp_path: Path, images: object) -> None:
    with pytest.raises(InputsError, match="samples="):
        fxprune.report(small).to_html(tmp_path / "report.html", samples={"dense": images})  # type: ignore[dict-item]
    assert not (tmp_path / "report.html").exists()


def test_a_saved_model_keeps_it(tmp_path: Path) -> None:
    from fxprune.demo.digits import load_pipeline

    made = fxprune.prune(load_pipeline().unet, "magnitude", 0.3, progress=False)
    fxprune.save(made, tmp_path / "small")
    assert fxprune.report(fxprune.load(tmp_path / "small")).anatomy == fxprune.report(made).anatomy
    done = CliRunner().invoke(app, ["report", str(tmp_path / "small"), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    assert "down_blocks.0.resnets.0.conv1" in (tmp_path / "page.html").read_text()
    header = tmp_path / "small" / "fxprune.json"
    whole = header.read_text()
    for bad in ('"links": [[1, 2, 3]]', '"links": [["a"]]', '"links": 3'):
        header.write_text(whole.replace('"links": [', bad + ', "other": [', 1))
        with pytest.raises(SaveError, match="links"):
            fxprune.load(tmp_path / "small")


def test_an_anatomy_without_scores_says_nothing_of_them() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = fxprune.trace(net, torch.randn(2, 4))
    plan = fxprune.plan(graph, fxprune.score(graph, net, "magnitude"), 0.3)
    assert all(not g.kept and not g.gone for g in anatomy(graph, plan).groups)
