"""What criteria share: computed once, over all processes, through gradient checkpoints, in any precision."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from couplings import CASES
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from fxprune import registry
from fxprune.criteria.gradflow import GradFlow
from fxprune.errors import CriterionError, InputsError
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.modules import as_inputs
from fxprune.scoring.context import Context
from fxprune.scoring.score import score
from fxprune.verification import permutation, permute_

LOOKS = [n for n in registry.names("criteria") if n != "random" and registry.package("criteria", n) == ""]


def loss(model: nn.Module, batch: Any) -> Tensor:
    args, kwargs = as_inputs(batch)
    outputs = [x for x in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(x, Tensor)]
    return torch.stack([(x - 0.3).square().mean() for x in outputs if x.is_floating_point()]).sum()


# ---- laws of all criteria on the nets of the coupling table ---------------------------------------------------------


NETS = ["ThreeDimensional", "TransposedGroups", "Tied", "Gqa", "Recurrent", "Biased", "Shuffles"]


@pytest.mark.parametrize("name", NETS)
def test_permuted_channels_have_permuted_scores(name: str) -> None:
    """Every criterion, with what they share computed once for all of them."""
    torch.manual_seed(0)
    cls, inputs, _ = CASES[name]
    net = cls().eval().double()
    batch = pytree.tree_map(lambda x: x.double() if x.is_floating_point() else x, inputs())
    graph = analyse(net, as_inputs(batch))
    orders = permutation(graph, seed=1)
    other = permute_(copy.deepcopy(net), graph, orders)
    pair: list[tuple[nn.Module, dict[Any, Any]]] = [(net, {}), (other, {})]
    scored = 0
    for criterion in LOOKS:
        try:
            before, after = (score(graph, m, criterion, data=[batch], loss=loss, reuse=memo).values for m, memo in pair)
        except CriterionError as e:
            assert "has nothing to say about any channel" in str(e)  # noqa: PT017 - bn_scale, hrank
            continue
        scored += 1
        for g, group in enumerate(graph.groups):
            v = before[group.name]
            np.testing.assert_allclose(after[group.name], v[orders[g]], rtol=0, atol=1e-6 * np.abs(v).max() + 1e-300)
    assert scored >= len(LOOKS) - 2


@pytest.mark.parametrize("criterion", [n for n in LOOKS if n != "gradflow"])
def test_half_precision_models_are_scored_much_like_the_same_in_float32(criterion: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 2, 3)).eval().bfloat16()
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    x = torch.randn(4, 2, 8, 8).bfloat16()
    half = score(analyse(net, as_inputs(x)), net, criterion, data=[x], loss=loss).values["0.weight:0"]
    net, x = net.float(), x.float()
    whole = score(analyse(net, as_inputs(x)), net, criterion, data=[x], loss=loss).values["0.weight:0"]
    np.testing.assert_allclose(half, whole, rtol=0, atol=0.06 * np.abs(whole).max())


def test_gradflow_of_half_precision_is_exact() -> None:
    net, x = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).bfloat16(), torch.randn(4, 2).bfloat16()
    values = score(analyse(net, as_inputs(x)), net, GradFlow(), data=[x], loss=loss).values["0.weight:0"]
    assert np.isfinite(values).all()


# ---- sharing --------------------------------------------------------------------------------------------------------


def small() -> tuple[nn.Module, ChannelGraph, list[Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
    return net, analyse(net, as_inputs(torch.ones(1, 3))), [torch.randn(4, 3) for _ in range(2)]


def test_what_criteria_share_is_computed_once() -> None:
    net, graph, data = small()
    calls: list[int] = []

    def counted(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(len(batch))
        return loss(model, batch)

    memo: dict[Any, Any] = {}
    passes = [("taylor", 2), ("snip", 0), ("gradflow", 2), ("wanda", 2), ("obs", 2), ("wanda", 0), ("fisher", 8)]
    for criterion, more in passes:
        calls.clear()
        first = score(graph, net, criterion, data=data, loss=counted, reuse=memo)
        assert len(calls) == more, criterion
        assert first == score(graph, net, criterion, data=data, loss=counted)


def test_the_model_alone_is_enough_for_those_that_only_look() -> None:
    net, graph, data = small()
    for criterion in ("wanda", "activation", "obs"):
        with_loss = score(graph, net, criterion, data=data, loss=loss)
        assert score(graph, net, criterion, data=data) == with_loss
        with pytest.raises(InputsError, match=r"model\(batch\) failed on batch 0 \(a tensor of shape \(2, 7\)\)"):
            score(graph, net, criterion, data=[torch.ones(2, 7)])


def test_two_parameters_with_one_gradient_do_not_share_its_sum() -> None:
    """Autograd hands both biases of a sum the very same tensor."""
    net, graph, data = small()
    got: dict[str, Tensor] = {}

    def keep(ctx: Context) -> dict[str, Tensor]:
        got.update(ctx.gradients())
        return got

    score(graph, net, keep, data=data, loss=lambda m, b: (m[2].bias + m[2].bias.detach() + m[2].weight.sum(1)).sum())  # type: ignore[index, union-attr]
    assert got["2.bias"].eq(1).all()
    assert got["2.weight"].eq(1).all()


# ---- gradient checkpoints -------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        inner: Callable[[Tensor], Tensor] = lambda y: torch.tanh(self.b(y))  # noqa: E731
        if self.reentrant is None or not torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self.c(inner(x))  # type: ignore[no-any-return]
        return self.c(checkpoint(inner, x, use_reentrant=self.reentrant))  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("criterion", ["taylor", "gradflow", "fisher", "diff_pruning", "wanda"])
def test_gradients_pass_through_checkpoints(reentrant: bool, criterion: str) -> None:
    plain, net = Checkpointed(None), Checkpointed(reentrant)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    graph = analyse(plain, as_inputs(x))
    expected = score(graph, plain, criterion, data=[x], loss=loss).values
    got = score(graph, net, criterion, data=[x], loss=loss).values
    # A reentrant checkpoint has no second derivative: gradflow takes a finite difference.
    rough = reentrant and criterion == "gradflow"
    for name, v in expected.items():
        np.testing.assert_allclose(got[name], v, rtol=0, atol=(1e-2 if rough else 1e-5) * np.abs(v).max())
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("criterion", ["taylor", "gradflow"])
def test_gradients_pass_through_the_checkpoints_of_diffusers(criterion: str) -> None:
    from diffusers import UNet2DModel

    from fxprune.adapter import find_adapter

    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        block_out_channels=(8, 8), down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    adapter = find_adapter(net)
    graph = analyse(net, as_inputs(adapter.example_inputs(net)))
    given: dict[str, Any] = {"data": [torch.randn(2, 1, 8, 8)], "loss": adapter.loss_of(net)}
    expected = score(graph, net, criterion, **given).values
    net.enable_gradient_checkpointing()
    for name, v in score(graph, net, criterion, **given).values.items():
        np.testing.assert_allclose(v, expected[name], rtol=0, atol=1e-4 * np.abs(expected[name]).max())


# ---- several processes ----------------------------------------------------------------------------------------------

WORKER = """
import sys, json, torch
from torch import nn, distributed
rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
if world > 1:
    distributed.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=world)
from fxprune.graph.analysis import analyse
from fxprune.scoring.score import score
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)).eval()
graph = analyse(net, ((torch.ones(1, 3),), {}))
data = [torch.randn(4, 3) for _ in range(3)]
mine = data[rank::world]  # two batches for the first, one for the second
loss = lambda model, batch: (model(batch) - 1).square().mean()
names = ["taylor", "gradflow", "fisher", "snip", "wanda", "activation", "obs", "diff_pruning"]
found = {n: {g: v.tolist() for g, v in score(graph, net, n, data=mine, loss=loss).values.items()} for n in names}
print(json.dumps(found))
"""


def test_processes_score_their_batches_together(tmp_path: Path) -> None:
    import json

    def start(rank: int, world: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, str(rank), str(world), str(tmp_path / "meeting")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    runs = [start(0, 1), start(0, 2), start(1, 2)]
    alone, first, second = (json.loads(run.communicate()[0].splitlines()[-1]) for run in runs)
    for name, groups in alone.items():
        for group, values in groups.items():
            assert first[name][group] == second[name][group]
            np.testing.assert_allclose(first[name][group], values, rtol=1e-4, atol=1e-6)
