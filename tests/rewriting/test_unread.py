"""Integers that only other code reads: brought along where they can mean nothing else, told otherwise."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune


class C2f(nn.Module):
    """Cuts by `chunk`; another forward, an exporter's, cuts by `c`."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.c = o // 2
        self.cv1, self.cv2, self.m = (
            nn.Conv2d(i, o, 1),
            nn.Conv2d(3 * self.c, o, 1),
            nn.Conv2d(self.c, self.c, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).chunk(2, 1)
        return self.cv2(torch.cat([a, b, self.m(b).relu()], 1))

    def split(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), 1)
        return self.cv2(torch.cat([a, b, self.m(b).relu()], 1))


def pruned(net: nn.Module, x: Tensor, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False, **kwargs)


def test_the_pieces_that_a_module_cuts(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Conv2d(3, 16, 1), C2f(16, 48), nn.Conv2d(48, 4, 1)), torch.randn(1, 3, 6, 6)
    small = pruned(net, x)
    assert small[1].c == small[1].cv1.out_channels // 2 < 24
    h = small[0](x)
    assert torch.equal(small[1].split(h), small[1](h))
    assert fxprune.load(fxprune.save(small, tmp_path / "m"), model=net)[1].c == small[1].c


class Wide(nn.Module):
    """Tells a width that only it has, one that could be several, and numbers of another kind."""

    def __init__(self, **told: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(24, 40), nn.Linear(40, 4)
        self.__dict__.update(told)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def test_what_can_only_be_one_width_follows() -> None:
    small = pruned(Wide(hidden=40, widths=[24, 40], config=SimpleNamespace(inner=24)), torch.randn(2, 8))
    assert small.hidden == small.b.out_features < 40
    assert small.widths == [small.a.out_features, small.b.out_features]
    assert small.config.inner == small.a.out_features
    names = {c.name for c in fxprune.report(small).changes}
    assert names >= {"hidden", "widths", "config.inner"}
    assert fxprune.report(small).stale == ()


def test_what_may_mean_something_else_is_told() -> None:
    """24 is the number of tokens too, and a config in a dict is never written to."""
    net = Wide(hidden=24, config={"inner": 40, "name": "wide"}, rows=[{"num_chs": 40}])
    small = pruned(net, torch.randn(2, 24, 8))
    assert small.hidden == 24
    told = {f"{s.path}{s.name}": (s.value, s.now) for s in fxprune.report(small).stale}
    b = small.b.out_features
    assert told["hidden"] == (24, (small.a.out_features,))
    assert told["config['inner']"] == told["rows[0]['num_chs']"] == (40, (b,))
    assert f"left as it was: hidden = 24 (now {small.a.out_features})" in repr(fxprune.report(small))


def test_several_new_widths_are_told() -> None:
    net = nn.Sequential(Wide(), nn.Linear(4, 24), nn.Linear(24, 4))
    net.__class__ = type("Told", (nn.Sequential,), {})
    net.planes = 24
    small = pruned(net, torch.randn(2, 8), ratios={"0.a.weight:0": 0.5, "1.weight:0": 0.25})
    assert small.planes == 24
    assert [s.now for s in fxprune.report(small).stale] == [(12, 18)]


def test_an_adapter_states_what_an_integer_tells() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", num_classes=5)
    small = pruned(net, torch.randn(1, 3, 32, 32))
    assert small.num_features == small.fc.in_features < 512
    small.reset_classifier(7)
    assert small.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)
