"""Networks that train for integers: fake quantisation passes channels, and scales of a channel go with it."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization as ao

import fxprune
from fxprune.masking.live import LiveMasks

pytestmark = pytest.mark.filterwarnings("ignore")
X = (2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = ao.QuantStub(), ao.DeQuantStub()
        self.a, self.n, self.r = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        self.b, self.s, self.c = nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.s(self.b(self.r(self.n(self.a(self.quant(x))))))
        out: Tensor = self.dequant(self.c(x.mean((2, 3))))
        return out


SHAPED = ao.QConfig(
    activation=ao.FakeQuantize.with_args(quant_min=0, quant_max=255), weight=ao.default_per_channel_weight_fake_quant
)
CONFIGS: dict[str, Callable[[], ao.QConfig]] = {
    "a scale a channel": lambda: ao.get_default_qat_qconfig("x86"),
    "a scale a tensor": lambda: ao.get_default_qat_qconfig("qnnpack"),
    "observers in Python": lambda: SHAPED,
}


def prepared(name: str, fused: bool = False, seen: bool = True) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net: nn.Module = Net().train()
        if fused:
            net = ao.fuse_modules_qat(net, [["a", "n", "r"], ["b", "s"]])
        net.qconfig = CONFIGS[name]()
        net = ao.prepare_qat(net)
        if seen:
            net(torch.randn(X))
    return net


@pytest.mark.parametrize(
    ("name", "fused"), [(n, False) for n in sorted(CONFIGS)] + [("a scale a channel", True)], ids=str
)
def test_pruned_and_proved(name: str, fused: bool) -> None:
    net, x = prepared(name, fused), torch.randn(X)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    made = fxprune.report(small)
    assert made.plan.achieved > 0.35
    assert made.forward == "module"
    checks = fxprune.verify(net, small, fxprune.trace(net, x), made.plan)
    assert all(c.ok for c in checks)
    small.train()(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_scales_of_a_channel_go_with_it() -> None:
    net, x = prepared("a scale a channel"), torch.randn(X)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    for layer in (small.get_submodule("a"), small.get_submodule("b")):
        width = layer.weight.shape[0]
        assert width < 16
        assert layer.weight_fake_quant.scale.shape == (width,)
        assert layer.weight_fake_quant.activation_post_process.min_val.shape == (width,)


def test_observers_that_saw_nothing_make_room() -> None:
    net, x = prepared("a scale a channel", seen=False), torch.randn(X)
    before = {n: t.shape for n, t in net.named_buffers()}
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    assert {n: t.shape for n, t in net.named_buffers()} == before
    small(x)
    assert small.get_submodule("a").weight_fake_quant.scale.shape == (small.get_submodule("a").weight.shape[0],)


def test_looking_moves_no_range() -> None:
    """An observer moves its range in eval mode, too: proofs put it back, in the model and in the result."""
    net, x = prepared("a scale a tensor"), torch.randn(X)
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=x, progress=False)
    was = [{n: t.clone() for n, t in m.named_buffers()} for m in (net, small)]
    fxprune.verify(net, small, fxprune.trace(net, x), fxprune.report(small).plan)
    for before, model in zip(was, (net, small), strict=True):
        assert all(torch.equal(t, before[n]) for n, t in model.named_buffers())


def test_masks_on_the_live_model() -> None:
    net, x = prepared("a scale a tensor").eval(), torch.randn(X)
    net.apply(ao.disable_observer)
    masks = LiveMasks(net, fxprune.trace(net, x))
    assert not masks.held
    masks.detach()
