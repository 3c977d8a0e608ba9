"""What a report tells is saved with the model, and comes back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.reporting.report import attach, report
from fxprune.rewriting.unread import Stale


class Talkative(nn.Module):
    """A maximum over channels, a parameter that nothing reads, an output that nobody needs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.spare = nn.Linear(8, 32), nn.Linear(32, 4), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.a(x)
        return self.b(h * h.amax(-1, keepdim=True)), h


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    made: nn.Module = fxprune.prune(
        Talkative(),
        "gradflow",
        0.4,
        example_inputs=x,
        data=[x],
        loss=lambda net, b: net(b)[0].square().mean(),
        outputs=lambda out: out[0],
        progress=False,
    )
    told = report(made)
    assert told.reduced
    assert told.unread == ("spare",)
    assert told.outputs
    assert told.scoring
    attach(made, replace(told, unseen="RuntimeError: no", stale=(Stale("a", "c", 32, (19, 20)),)))
    return made


def test_a_loaded_report_tells_the_same(tmp_path: Path, small: nn.Module) -> None:
    before, after = report(small), report(fxprune.load(fxprune.save(small, tmp_path / "m"), model=Talkative()))
    for name in ("scoring", "unread", "unseen", "outputs", "stale"):
        assert getattr(after, name) == getattr(before, name) != type(getattr(after, name))(), name
    assert after.reduced == tuple(r.partition(" at File ")[0] for r in before.reduced)
    assert "over what stays" in repr(after)


def test_no_path_of_this_machine_is_told(tmp_path: Path, small: nn.Module) -> None:
    assert __file__ in report(small).reduced[0]
    assert (anatomy := report(small).anatomy) is not None
    assert {h.source.partition(":")[0] for h in anatomy.frozen} == {Path(__file__).name}
    header = Path(fxprune.save(small, tmp_path / "m")) / "fxprune.json"
    assert str(Path(__file__).parent) not in header.read_text()


@pytest.mark.parametrize("spoilt", [{"stale": [{"path": "", "name": "c", "value": -1, "now": []}]}, {"unread": [3]}])
def test_what_is_told_is_checked(tmp_path: Path, small: nn.Module, spoilt: dict[str, object]) -> None:
    header = Path(fxprune.save(small, tmp_path / "m")) / "fxprune.json"
    data = json.loads(header.read_text())
    data["told"] |= spoilt
    header.write_text(json.dumps(data))
    with pytest.raises(fxprune.SaveError, match="damaged or foreign"):
        fxprune.load(tmp_path / "m", model=Talkative())


def test_folders_without_it_are_read(tmp_path: Path, small: nn.Module) -> None:
    header = Path(fxprune.save(small, tmp_path / "m")) / "fxprune.json"
    data = json.loads(header.read_text())
    del data["told"], data["checksums"]
    header.write_text(json.dumps(data))
    assert report(fxprune.load(tmp_path / "m", model=Talkative())).scoring == ()
