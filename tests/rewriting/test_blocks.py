"""Depth as a unit: which branches are found, what the network computes without them, and what users do next."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depthnets import NETS, made
from hypothesis import given, settings
from hypothesis import strategies as st
from real_models import digits, random_weights, timm_model
from torch import Tensor, nn

import fxprune
from fxprune.masking.comparison import outputs
from fxprune.masking.masked_run import run_masked
from fxprune.planning.cost_model import CostModel
from fxprune.rewriting.skip import Passed, Skip, Zeros
from fxprune.verification import check_dense

WITH_BLOCKS = [n for n, (_, _, blocks) in NETS.items() if blocks and n != "rough"]


def only(graph: fxprune.ChannelGraph, *blocks: str) -> fxprune.Plan:
    """A plan that takes out these blocks."""
    sizes = {g.name: len(g) for g in graph.without(blocks).groups}
    return fxprune.Plan(graph.model_class, graph.fingerprint, {}, sizes, blocks=blocks)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def skips(model: nn.Module) -> dict[str, Skip]:
    return {n: m for n, m in model.named_modules() if isinstance(m, Skip)}


# ---- what is found --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_blocks_are_what_starts_at_the_stream_and_ends_in_it(name: str) -> None:
    net, inputs, blocks = made(name)
    assert [b.name for b in fxprune.trace(net, inputs(2)).blocks] == blocks


def test_a_block_owns_what_goes_with_it() -> None:
    net, inputs, _ = made("pre-norm")
    block = fxprune.trace(net, inputs(2)).blocks[0]
    assert block.modules == ("blocks.0.attn", "blocks.0.norm1")
    assert set(block.tensors) == {n for n, _ in net.named_parameters() if n.startswith(block.modules)}


def test_a_modulation_goes_with_the_last_that_reads_it() -> None:
    net, inputs, _ = made("ada")
    graph = fxprune.trace(net, inputs(2))
    assert "blocks.0.ada.weight" in graph.without(["blocks.0.attn"]).parameters
    assert "blocks.0.ada.weight" not in graph.without(["blocks.0.attn", "blocks.0.mlp"]).parameters


def test_weights_that_no_module_takes_along_stay_and_count() -> None:
    net, inputs, _ = made("layer scale")
    graph = fxprune.trace(net, inputs(2))
    left = graph.without(["mlp"])
    assert "gamma" not in left.parameters
    small = fxprune.rewrite(net, graph, only(graph, "mlp")).model
    assert CostModel(left).of("params", np.zeros(len(left.groups))) == count(small) == count(net) - count(net.mlp)


def test_labels_stay_and_an_unknown_block_is_refused() -> None:
    net, inputs, _ = made("resnet")
    graph = fxprune.trace(net, inputs(2))
    left = graph.without(["layers.0"])
    assert left.component is graph.component
    assert left.fingerprint == graph.fingerprint
    assert {n.name for n in left.traced.graph.nodes} < {n.name for n in graph.traced.graph.nodes}
    assert graph.without([]) is graph
    assert left.without(["layers.0"]) is left
    with pytest.raises(fxprune.PlanError, match=r"no block 'layers\.7'"):
        graph.without(["layers.7"])


# ---- what is computed -----------------------------------------------------------------------------------------------


@contextmanager
def silenced(*modules: nn.Module) -> Iterator[None]:
    """Within, these modules give zeros: nothing of fxprune is needed for that."""

    def zeros(_: nn.Module, args: Any, output: Any) -> Any:
        return 0 * output if isinstance(output, Tensor) else (0 * output[0], *output[1:])

    handles = [m.register_forward_hook(zeros) for m in modules]
    try:
        yield
    finally:
        for h in handles:
            h.remove()


def ends(net: nn.Module, block: str) -> nn.Module:
    """The module that a test network adds for a block."""
    found = net.get_submodule(block)
    return next((getattr(found, n) for n in ("bn2", "conv2") if hasattr(found, n)), found)


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_each_block_and_all_of_them_are_as_if_multiplied_by_zero(name: str) -> None:
    net, inputs, blocks = made(name)
    graph = fxprune.trace(net, inputs(2))
    for chosen in [*((b,) for b in blocks), tuple(blocks)]:
        plan = only(graph, *chosen)
        small = fxprune.rewrite(net, graph, plan).model
        assert check_dense(net, small, graph, plan).ok
        for batch in (2, 5):
            x = inputs(batch)
            with torch.no_grad(), silenced(*(ends(net, b) for b in chosen)):
                wanted = net(*x)
            torch.testing.assert_close(small(*x), wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(wanted, net(*x), atol=1e-3)
        gone = {t for b in graph.blocks if b.name in chosen for t in b.tensors}
        assert not gone & {n for n, _ in small.named_parameters()}


@pytest.mark.parametrize("name", WITH_BLOCKS)
def test_nothing_removed_is_the_identity(name: str) -> None:
    net, inputs, _ = made(name)
    graph = fxprune.trace(net, inputs(2))
    plan = fxprune.plan(graph, fxprune.score(graph, net, "magnitude"), 0.0, granularity="block")
    assert not plan.blocks
    done = fxprune.rewrite(net, graph, plan)
    assert not skips(done.model)
    assert torch.equal(done.model(*(x := inputs(3))), net(*x))


def test_a_block_mask_of_one_is_the_model_and_between_it_is_smooth() -> None:
    from fxprune.masking.masked_run import MaskedRun

    net, inputs, blocks = made("ada")
    x = inputs(2)
    graph = fxprune.trace(net, x)
    with torch.no_grad():
        whole = MaskedRun(graph, net, blocks=dict.fromkeys(blocks, 1.0))((x, {}))[0]
    torch.testing.assert_close(whole, net(*x), rtol=1e-5, atol=1e-5)
    gate = torch.tensor(0.5, requires_grad=True)
    MaskedRun(graph, net, blocks={blocks[0]: gate})((x, {}))[0].sum().backward()
    assert gate.grad is not None
    assert gate.grad != 0


def test_a_whole_block_passes_its_stream_on() -> None:
    net, inputs, blocks = made("pre-norm")
    graph = fxprune.trace(net, inputs(2))
    found = skips(fxprune.rewrite(net, graph, only(graph, *blocks)).model)
    assert {n: s.answer for n, s in found.items()} == {"blocks.0": Passed(0), "blocks.1": Passed(0)}
    found = skips(fxprune.rewrite(net, graph, only(graph, "blocks.1.attn")).model)
    assert {n: s.answer for n, s in found.items()} == {
        "blocks.1.norm1": Passed(0),
        "blocks.1.attn": (Zeros(0, 0, 3), None),
    }


def test_a_scaling_by_one_after_the_sum_does_not_hold_a_block_together() -> None:
    model = unet()
    graph = fxprune.trace(model)
    found = skips(fxprune.rewrite(model, graph, only(graph, "mid_block.resnets.0", "mid_block.attentions.0")).model)
    assert {n: s.answer for n, s in found.items()} == {
        "mid_block.attentions.0": Passed(0),
        "mid_block.resnets.0": Passed(0),
    }


def test_strides_follow_the_size_of_the_image() -> None:
    net, inputs, _ = made("resnet")
    graph = fxprune.trace(net, inputs(2))
    small = fxprune.rewrite(net, graph, only(graph, "layers.1")).model
    for side in (8, 9, 13):
        x = torch.randn(1, 3, side, side)
        with torch.no_grad(), silenced(net.layers[1].bn2):
            wanted = net(x)
        torch.testing.assert_close(small(x), wanted)


# ---- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["params", "macs"])
@pytest.mark.parametrize("name", ["pre-norm", "resnet", "ada", "u-shape"])
@settings(max_examples=10)
@given(ratio=st.floats(0.05, 0.5), seed=st.integers(0, 99))
def test_a_budget_is_met_within_one_block(name: str, of: str, ratio: float, seed: int) -> None:
    net, inputs, _ = made(name)
    graph = _traced(name, net, inputs)
    rng = np.random.default_rng(seed)
    scores = {b.name: rng.normal() for b in graph.blocks}
    try:
        plan = fxprune.plan(graph, scores, ratio, of, granularity="block")
        more = None
    except fxprune.BudgetError as e:
        more = e.reachable
    if more is not None:  # less than two thirds would go, and one more block would be farther off
        assert more - ratio > ratio / 3 - 1e-9
        return
    assert plan.achieved > ratio * 2 / 3 - 1e-9
    small = fxprune.rewrite(net, graph, plan).model
    before, after = plan.costs[of]
    assert plan.achieved == 1 - after / before
    assert plan.costs["params"] == (count(net), count(small))
    for block in graph.blocks:  # no further block brings it nearer
        more = _share(graph, [*plan.blocks, block.name], of)
        assert abs(more - ratio) >= abs(plan.achieved - ratio) - 1e-9
    if plan.achieved > ratio:  # nor does one less
        for block in plan.blocks:
            less = _share(graph, [n for n in plan.blocks if n != block], of)
            assert less < ratio
    assert plan == fxprune.plan(graph, scores, ratio, of, granularity="block")


_TRACED: dict[str, fxprune.ChannelGraph] = {}


def _traced(name: str, net: nn.Module, inputs: Callable[[int], Any]) -> fxprune.ChannelGraph:
    if name not in _TRACED:
        _TRACED[name] = fxprune.trace(net, inputs(2))
    return _TRACED[name]


def _share(graph: fxprune.ChannelGraph, blocks: list[str], of: str) -> float:
    total, left = (CostModel(g).of(of, np.zeros(len(g.groups))) for g in (graph, graph.without(blocks)))
    return 1 - left / total


def test_blocks_and_channels_meet_the_budget_together() -> None:
    net, inputs, _ = made("pre-norm")
    graph = fxprune.trace(net, inputs(2))
    scores = fxprune.score(graph, net, "magnitude")
    for of in ("params", "macs"):
        plan = fxprune.plan(graph, scores, 0.6, of, granularity="both")
        assert plan.blocks
        assert any(plan.removed.values())
        assert plan.achieved == pytest.approx(0.6, abs=0.01)
        assert plan.ratio == 0.6
        small = fxprune.rewrite(net, graph, plan).model
        assert check_dense(net, small, graph, plan).ok
        assert plan.costs["params"] == (count(net), count(small))


def test_the_lowest_saliency_for_its_cost_goes_first() -> None:
    net, inputs, _ = made("ada")
    graph = fxprune.trace(net, inputs(2))
    sizes = {b.name: sum(int(np.prod(graph.shapes[t])) for t in b.tensors) for b in graph.blocks}
    rates = {"blocks.0.attn": 3.0, "blocks.0.mlp": 1.0, "blocks.1.attn": 2.0, "blocks.1.mlp": 4.0}
    scores = {n: rates[n] * sizes[n] for n in rates}
    ratio = _share(graph, ["blocks.0.mlp", "blocks.1.attn"], "params")
    assert fxprune.plan(graph, scores, ratio, granularity="block").blocks == ("blocks.0.mlp", "blocks.1.attn")


def test_a_block_scores_the_sum_over_its_tensors() -> None:
    net, inputs, _ = made("pre-norm")
    graph = fxprune.trace(net, inputs(2))
    scores = fxprune.score(graph, net, lambda ctx: {n: torch.ones_like(p) for n, p in ctx.parameters.items()})
    assert scores.blocks == {b.name: sum(int(np.prod(graph.shapes[t])) for t in b.tensors) for b in graph.blocks}
    assert fxprune.Scores.from_json(scores.to_json()) == scores
    by_group = fxprune.score(graph, net, lambda ctx: {g.name: np.ones(len(g)) for g in ctx.graph.groups})
    assert by_group.blocks["blocks.0.mlp"] == 32


def test_scores_without_blocks_are_refused() -> None:
    net, inputs, _ = made("pre-norm")
    graph = fxprune.trace(net, inputs(2))
    channels = {g.name: np.zeros(len(g)) for g in graph.groups}
    with pytest.raises(fxprune.CriterionError, match=r"block 'blocks\.0\.attn' has no finite score"):
        fxprune.plan(graph, channels, 0.2, granularity="block")


@pytest.mark.parametrize("pattern", ["blocks.0", "blocks.0.*", "blocks.0.attn.qkv", "*norm*"])
def test_what_is_ignored_stays(pattern: str) -> None:
    net, inputs, blocks = made("pre-norm")
    graph = fxprune.trace(net, inputs(2))
    held = {"blocks.0": 2, "blocks.0.*": 2, "blocks.0.attn.qkv": 1, "*norm*": 4}[pattern]
    scores = {b: float(i) for i, b in enumerate(blocks)}
    with pytest.raises(fxprune.BudgetError, match="by taking out blocks") as e:
        fxprune.plan(graph, scores, 0.95, granularity="block", ignore=[pattern])
    assert e.value.reachable == pytest.approx(
        _share(graph, blocks[held:], "params") if held != 1 else _share(graph, blocks[1:], "params")
    )


def test_types_of_modules_are_ignored_and_ratios_need_a_budget() -> None:
    net, inputs, blocks = made("pre-norm")
    graph = fxprune.trace(net, inputs(2))
    scores = dict.fromkeys(blocks, 1.0)
    with pytest.raises(fxprune.BudgetError, match=r"make 0\.0%"):
        fxprune.plan(graph, scores, 0.5, granularity="block", ignore=[nn.LayerNorm])
    with pytest.raises(fxprune.BudgetError, match='granularity="block" narrows nothing, so ratios= has no effect'):
        fxprune.plan(graph, scores, ratios={"blocks.0.*": 0.5}, granularity="block")


def test_a_target_counts_what_stays() -> None:
    net, inputs, _ = made("ada")
    graph = fxprune.trace(net, inputs(2))
    scores = fxprune.score(graph, net, "magnitude")
    plan = fxprune.plan(graph, scores, target=0.7 * count(net), granularity="both")
    assert plan.ratio == pytest.approx(0.3)
    assert plan.cost("params") == pytest.approx(0.7 * count(net), rel=0.02)


def test_edited_and_replayed_plans_keep_their_blocks() -> None:
    net, inputs, _ = made("pre-norm")
    sibling = copy.deepcopy(net)
    nn.init.normal_(sibling.head.weight)
    graph = fxprune.trace(net, inputs(2))
    scores = fxprune.score(graph, net, "magnitude")
    plan, more = (fxprune.plan(graph, scores, r, granularity="both") for r in (0.52, 0.55))
    assert plan.blocks == more.blocks != ()
    assert (plan & more).on(graph).blocks == plan.blocks
    kept = plan.keep("blocks.*").on(graph)
    assert kept.blocks == plan.blocks
    assert kept.costs["params"][0] == count(net)
    assert 0 < kept.achieved < plan.achieved
    small = fxprune.apply(sibling, kept, example_inputs=inputs(2))
    assert count(small) == kept.cost("params")
    with pytest.raises(fxprune.PlanError, match="only one of the plans takes out block"):
        plan.diff(fxprune.plan(graph, scores, 0.3))


def test_nested_blocks_are_named_once() -> None:
    net, inputs, _ = made("u-shape")
    graph = fxprune.trace(net, inputs(2))
    ratio = _share(graph, ["up"], "params")
    assert fxprune.plan(graph, {"middle": 0.0, "up": 1.0}, ratio, granularity="block").blocks == ("up",)


def test_plans_are_json_and_old_ones_have_no_blocks() -> None:
    net, inputs, _ = made("pre-norm")
    graph = fxprune.trace(net, inputs(2))
    plan = only(graph, "blocks.1.mlp")
    assert fxprune.Plan.from_json(plan.to_json()) == plan
    data = json.loads(plan.to_json())
    del data["blocks"]
    assert fxprune.Plan.from_json(json.dumps(data)).blocks == ()
    with pytest.raises(fxprune.PlanError, match="no list of names"):
        fxprune.Plan.from_json(json.dumps(data | {"blocks": "blocks.1.mlp"}))
    with pytest.raises(fxprune.PlanError, match="no block"):
        replace(plan, blocks=("blocks.9",)).kept(graph)


# ---- models ---------------------------------------------------------------------------------------------------------


def unet() -> nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    return random_weights(
        UNet2DModel(sample_size=8, layers_per_block=1, norm_num_groups=8, attention_head_dim=8, **blocks)
    )


def dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "sample_size": 8}
    return random_weights(DiTTransformer2DModel(num_layers=3, num_embeds_ada_norm=10, **shape))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits": digits,
    "dit": dit,
    "resnet18": timm_model("resnet18"),
    "unet": unet,
    "vit_tiny": timm_model("vit_tiny_patch16_224", depth=4, img_size=64),
}
ENDS = ("bn2", "conv2", "proj", "to_out.0")  # what a model of these adds for a block, below its name


@pytest.mark.parametrize("granularity", ["block", "both"])
@pytest.mark.parametrize("name", MODELS)
def test_models_lose_blocks_and_are_what_they_were_otherwise(name: str, granularity: str) -> None:
    model = MODELS[name]()
    small = fxprune.prune(model, "magnitude", 0.4, granularity=granularity, progress=False)
    report = fxprune.report(small)
    assert report.forward == "module"
    assert report.plan.blocks
    assert all(c.ok and c.tolerance == 1e-4 for c in report.checks)
    assert report.plan.costs["params"] == (count(model), count(small))
    assert type(small) is type(model)
    if granularity == "both":
        assert report.plan.achieved == pytest.approx(0.4, abs=0.01)
    args, kwargs = fxprune.trace(model).traced.example
    more = torch.utils._pytree.tree_map(
        lambda x: torch.cat([x] * 3) if isinstance(x, Tensor) and x.dim() else x, (args, kwargs)
    )
    assert [x.shape for x in outputs(small, more)] == [x.shape for x in outputs(model, more)]
    if granularity == "block":
        with silenced(*(_end(model, b) for b in report.plan.blocks)):
            wanted = outputs(model, more)
        for a, b in zip(outputs(small, more), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    twin = copy.deepcopy(small)
    optimizer = torch.optim.SGD(twin.train().parameters(), 1e-3)
    first = next(x for x in torch.utils._pytree.tree_leaves(twin(*args, **kwargs)) if isinstance(x, Tensor))
    first.square().mean().backward()
    optimizer.step()
    assert not torch.equal(outputs(twin, (args, kwargs))[0], outputs(small, (args, kwargs))[0])


def _end(model: nn.Module, block: str) -> nn.Module:
    inner = model.get_submodule(block)
    found = (m for n in ENDS if (m := dict(inner.named_modules()).get(n)) is not None)
    return next(found, inner)


def test_criteria_that_look_at_gradients_score_blocks_too() -> None:
    small = fxprune.prune(digits(), "gradflow", 0.2, granularity="block", samples=2, progress=False)
    assert fxprune.report(small).plan.blocks


def test_a_model_pruned_once_more_keeps_what_was_taken_out(tmp_path: Path) -> None:
    model = timm_model("resnet18")()
    small = fxprune.prune(model, "magnitude", 0.5, granularity="both", progress=False)
    again = fxprune.prune(small, "magnitude", 0.3, progress=False)
    assert fxprune.report(again).forward == "module"
    assert fxprune.report(again).plan.achieved == pytest.approx(0.3, abs=0.01)
    assert set(skips(small)) == set(skips(again))
    last = fxprune.prune(again, "magnitude", 0.3, granularity="block", progress=False)
    x = torch.randn(1, 3, 64, 64)
    loaded = fxprune.load(fxprune.save(last, tmp_path), model=model)
    assert torch.equal(loaded(x), last(x))


def test_in_place_the_given_model_loses_its_modules() -> None:
    model = dit()
    blocks, block = model.transformer_blocks, model.transformer_blocks[2]
    small = fxprune.prune(model, "magnitude", 0.4, granularity="block", inplace=True, progress=False)
    assert small is model
    assert model.transformer_blocks is blocks
    assert model.transformer_blocks[2] is block or isinstance(model.transformer_blocks[2], Skip)
    assert skips(model)


def test_blocks_that_the_module_cannot_miss_stay() -> None:
    net, inputs, _ = made("rough")
    ratio = _share(fxprune.trace(net, inputs(2)), ["c"], "params")
    options: dict[str, Any] = {"example_inputs": inputs(2), "granularity": "block", "progress": False}
    small = fxprune.prune(net, lambda ctx: _graded(ctx, {"a": 1, "b": 2, "c": 3}), ratio, strict=True, **options)
    assert fxprune.report(small).forward == "module"
    assert fxprune.report(small).plan.blocks == ("c",)
    with pytest.raises(fxprune.RewriteError, match="does not run without its blocks: AttributeError"):
        fxprune.prune(net, "magnitude", 0.8, strict=True, **options)
    last = fxprune.prune(net, "magnitude", 0.8, **options)
    assert fxprune.report(last).forward == "graph"
    assert fxprune.report(last).plan.blocks == ("a", "b", "c")
    assert count(last) == fxprune.report(last).plan.costs["params"][1]


def _graded(ctx: Any, worth: dict[str, float]) -> dict[str, Tensor]:
    return {n: torch.full_like(p, worth.get(n.partition(".")[0], 9)) for n, p in ctx.parameters.items()}


# ---- saved ----------------------------------------------------------------------------------------------------------

LOAD = """
import sys, torch, fxprune
model = fxprune.load(sys.argv[1])
x = torch.load(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]))
with torch.no_grad():
    got = model(*x["args"]).sample
assert torch.equal(got, x["wanted"])
assert fxprune.report(model).plan.blocks
"""


def test_saved_and_loaded_in_a_new_process(tmp_path: Path) -> None:
    small = fxprune.prune(unet(), "magnitude", 0.4, granularity="both", progress=False)
    fxprune.save(small, tmp_path / "small")
    args = (torch.randn(2, 3, 8, 8), torch.tensor([3, 7]))
    with torch.no_grad():
        torch.save({"args": args, "wanted": small(*args).sample}, tmp_path / "x.pt")
    command = [
        sys.executable,
        "-c",
        LOAD,
        str(tmp_path / "small"),
        str(tmp_path / "x.pt"),
        str(torch.get_num_threads()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"norm9": {"answer": None, "sizes": []}}, "no module 'norm9'"),
        ({"mlp": {"answer": {"call": "os.system"}, "sizes": []}}, "is no answer"),
        ({"mlp": {"answer": {"zeros": 0, "first": 0, "rank": 3}, "sizes": [-1]}}, "not among 1"),
        ({"mlp": {"answer": {"passed": -1}, "sizes": []}}, "no argument's position"),
        ({"mlp": {"answer": None, "sizes": [2**40]}}, "not a size of zeros"),
        ({"mlp": {"answer": None, "sizes": []}, "mlp.up": {"answer": None, "sizes": []}}, "taken out twice"),
        ({}, "stock module|folder lacks"),
    ],
)
def test_damaged_entries_are_refused(tmp_path: Path, entry: dict[str, Any], message: str) -> None:
    net, inputs, _ = made("post-norm")
    small = fxprune.prune(net, "magnitude", 0.6, example_inputs=inputs(2), granularity="block", progress=False)
    fxprune.save(small, tmp_path)
    file = tmp_path / "fxprune.json"
    data = json.loads(file.read_text())
    assert list(data["skips"]) == ["mlp"]
    file.write_text(json.dumps(data | {"skips": entry}))
    with pytest.raises(fxprune.SaveError, match=message):
        fxprune.load(tmp_path, model=net)


def test_the_command_line_takes_out_blocks(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fxprune.cli import app

    dit().save_pretrained(tmp_path / "dit")
    run = CliRunner().invoke
    shown = run(app, ["inspect", str(tmp_path / "dit")])
    assert shown.exit_code == 0, shown.output
    assert "Blocks that can go whole" in shown.output
    options = ["--granularity", "block", "--criterion", "magnitude", "--quiet", "-o", str(tmp_path / "small")]
    done = run(app, ["prune", str(tmp_path / "dit"), *options])
    assert done.exit_code == 0, done.output
    assert "blocks: transformer_blocks." in done.output
    assert fxprune.report(fxprune.load(tmp_path / "small")).plan.blocks


def test_an_unknown_granularity_is_refused() -> None:
    net, inputs, _ = made("pre-norm")
    with pytest.raises(fxprune.BudgetError, match="choose one of channel, block, both"):
        fxprune.prune(net, "magnitude", 0.2, example_inputs=inputs(2), granularity="layer", progress=False)


def test_masks_of_blocks_and_channels_agree_with_the_reduced_graph() -> None:
    net, inputs, _ = made("resnet")
    x = (inputs(2), {})
    graph = fxprune.trace(net, x[0])
    plan = fxprune.plan(graph, fxprune.score(graph, net, "magnitude"), 0.6, granularity="both")
    assert plan.blocks
    masked = run_masked(graph, net, x, plan.kept(graph), plan.norms, plan.blocks)
    reduced = run_masked(graph.without(plan.blocks), net, x, plan.kept(graph), plan.norms)
    torch.testing.assert_close(masked[0], reduced[0])


def test_blocks_that_leave_most_of_a_budget_are_refused() -> None:
    net, inputs, blocks = made("pre-norm")
    graph = fxprune.trace(net, inputs(2))
    scores = {b: float(i) for i, b in enumerate(blocks)}
    least = min(_share(graph, [b], "params") for b in blocks)
    with pytest.raises(fxprune.BudgetError, match=r"those that fit make 0\.0%, with one more") as e:
        fxprune.plan(graph, scores, least / 3, granularity="block")
    assert e.value.reachable == pytest.approx(least)
    near = fxprune.plan(graph, scores, least * 0.9, granularity="block")
    assert len(near.blocks) == 1
