"""Models as people have them: what cannot be cut is told before any work, what can is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.errors import InputsError

X = torch.randn(2, 8)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def pruned(model: nn.Module, **options: Any) -> nn.Module:
    return fxprune.prune(model, "magnitude", 0.4, example_inputs=X, progress=False, **options)


class Watched(nn.Module):
    """Its hook keeps activations, which autograd made, in nested containers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()
        self.seen: dict[str, Any] = {"all": []}
        self.inner[0].register_forward_hook(lambda m, i, o: self.seen["all"].append((o,)))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def test_a_hook_may_keep_what_autograd_made() -> None:
    given = Watched()
    given(X)
    small = pruned(given)
    assert small.inner[0].out_features < 32
    assert given.seen["all"][0][0].grad_fn is not None, "the given one is as it was"


class Uncopied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.lock = net(), torch.ops.aten

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot pickle this")

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


def test_what_cannot_be_copied_is_told() -> None:
    with pytest.raises(InputsError, match=r"this Uncopied cannot be copied .TypeError: cannot pickle this.: take off"):
        pruned(Uncopied())


def test_a_model_pruned_in_inference_mode_can_be_trained() -> None:
    given = net()
    with torch.inference_mode():
        small = pruned(given)
        again = fxprune.apply(given, fxprune.report(small).plan, example_inputs=X.clone())
    for made in (small, again):
        made(X).sum().backward()
        assert all(p.grad is not None for p in made.parameters())


def _inference() -> nn.Module:
    with torch.inference_mode():
        return net()


REFUSED: dict[str, tuple[Any, str]] = {
    "made in inference mode": (_inference, r"made inside torch.inference_mode\(\)"),
    "jit.trace": (
        lambda: torch.jit.trace(net().eval(), X),
        "is compiled by torch.jit.*: prune the module",
    ),
    "jit.script": (lambda: torch.jit.script(net()), "is compiled by torch.jit"),
    "export": (lambda: torch.export.export(net().eval(), (X,)).module(), "has no eval mode"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_module_of_pythons_own_is_told(case: str) -> None:
    make, message = REFUSED[case]
    with pytest.raises(InputsError, match=message):
        pruned(make())
