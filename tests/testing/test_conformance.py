"""The conformance kit: our own plugins pass it, and plugins that break a law are told which."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune import registry
from fxprune.adapter import Adapter
from fxprune.testing import check_adapter, check_criterion, check_scheduler
from fxprune.training.scheduler import Floats, Flow, Problem, Scheduler, Values

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "plugin"


def own(kind: registry.Kind) -> list[str]:
    return [name for name in registry.names(kind) if not registry.package(kind, name)]


DEGREES: dict[str, dict[str, float]] = {
    "magnitude": {"weights": 2, "loss": 0},
    "taylor": {"loss": 1},
    "gradflow": {"loss": 1},
    "gradflow_preserving": {"loss": 2},
    "fisher": {"loss": 2},
    "lamp": {"weights": 0},
    "bn_scale": {"weights": 1},
}


@pytest.mark.parametrize("name", own("criteria"))
def test_our_criteria_pass(name: str) -> None:
    check_criterion(name, equivariant=name != "random", degrees=DEGREES.get(name, {}))


@pytest.mark.parametrize("name", own("schedulers"))
def test_our_schedulers_pass(name: str) -> None:
    check_scheduler(name)


def model_of(name: str) -> Any:
    """A small model of an adapter's family."""
    if name == "generic":
        return nn.Module()
    diffusers: Any = pytest.importorskip("diffusers")
    if name == "torchvision":
        return pytest.importorskip("torchvision").models.squeezenet1_1(num_classes=3)
    if name == "timm":
        return pytest.importorskip("timm").create_model("test_vit", num_classes=3)
    if name == "transformers":
        transformers = pytest.importorskip("transformers")
        sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 64}
        return transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes))
    if name == "dit":
        options = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "num_layers": 1}
        return diffusers.DiTTransformer2DModel(**options, sample_size=8, patch_size=2)
    blocks = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
    if name == "ddpm":
        down, up = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
        return diffusers.UNet2DModel(**blocks, down_block_types=down, up_block_types=up)
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    return diffusers.UNet2DConditionModel(
        **blocks, down_block_types=down, up_block_types=up, attention_head_dim=4, cross_attention_dim=24
    )


@pytest.mark.parametrize("name", [name for name in own("adapters") if name != "generic"])
def test_our_adapters_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.adapters import denoising

    monkeypatch.setattr(denoising, "STEPS", 2)
    check_adapter(name, model_of(name))


# ---- plugins that break a law ---------------------------------------------------------------------------------------


class Fine:
    """One saliency a weight."""

    def __call__(self, ctx: Any) -> dict[str, Tensor]:
        return {n: p.detach().square() for n, p in ctx.parameters.items()}


class Drifts(Fine):
    calls = 0

    def __call__(self, ctx: Any) -> dict[str, Tensor]:
        self.calls += 1
        return {n: v + self.calls for n, v in super().__call__(ctx).items()}


class Positional(Fine):
    def __call__(self, ctx: Any) -> dict[str, Tensor]:
        return {g.name: torch.arange(len(g)) for g in ctx.graph.groups}  # type: ignore[misc]


class Marks(Fine):
    def __call__(self, ctx: Any) -> dict[str, Tensor]:
        ctx.model.seen = True
        return super().__call__(ctx)


class Undeclared(Fine):
    def __call__(self, ctx: Any) -> dict[str, Tensor]:
        return {n: g.abs() for n, g in ctx.gradients().items()}


class Flat(Fine):
    def __call__(self, ctx: Any) -> dict[str, Tensor]:
        return {g.name: torch.ones(len(g)) for g in ctx.graph.groups}


class Wide(Fine):
    def __call__(self, ctx: Any) -> dict[str, Tensor]:
        return {n: p.cholesky_inverse() if p.dim() == 9 else p.new_ones(7) for n, p in ctx.parameters.items()}


class Single(Fine):
    def __call__(self, ctx: Any) -> dict[str, Tensor]:
        return {n: torch.from_numpy(p.detach().numpy() ** 2) for n, p in ctx.parameters.items()}


BAD_CRITERIA: list[tuple[Any, dict[str, Any], str]] = [
    (Drifts, {}, "the same model, data and seed gave other scores"),
    (Positional, {}, "permuting the channels of .* does not permute their scores"),
    (Marks, {}, "it changed attributes of the model: seen"),
    (Undeclared, {}, r"asks for what it does not declare \(needs = nothing\)"),
    (Flat, {}, "all channels of every group have the same score"),
    (Wide, {}, r"scoring a Images of torch.float32 fails: CriterionError: .* returned shape \(7,\)"),
    (Single, {}, "scoring a Images of torch.bfloat16 fails: TypeError: Got unsupported ScalarType BFloat16"),
    (Fine, {"degrees": {"weights": 1}}, r"weights times 1.5 do not give scores times 1.5\^1"),
    (Fine, {"degrees": {"width": 1}}, "declares a degree in 'width'"),
]


@pytest.mark.parametrize(("criterion", "options", "message"), BAD_CRITERIA, ids=lambda x: getattr(x, "__name__", None))
def test_a_bad_criterion_is_told(criterion: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=f"criterion '{criterion.__name__}': .*{message}"):
        check_criterion(criterion, **options)


def test_a_fine_criterion_passes_and_may_declare_its_degrees() -> None:
    check_criterion(Fine, degrees={"weights": 2})
    declares = type("Declares", (Fine,), {"degrees": {"weights": 3}})
    with pytest.raises(AssertionError, match=r"scores times 1.5\^3"):
        check_criterion(declares)


class Cut(Flow):
    """What one shot does, with one flaw."""

    def __init__(self, problem: Problem, flaw: str) -> None:
        super().__init__(problem)
        self.flaw = flaw
        if flaw == "holds an object":
            self.held = object()

    def refresh(self, values: Values) -> None:
        ratio = 0.2 if self.flaw == "stops early" else None
        self.chosen, self.due = self.problem.plan(values, ratio), self.flaw == "always due"

    def step(self) -> Floats:
        self.taken += 0 if self.flaw == "does not count" else 1
        self.mask = self.problem.mask(self.plan)
        if self.flaw == "stays soft":
            self.mask = np.maximum(self.mask, 0.25)
        if self.flaw == "goes below":
            self.mask = self.mask - 1
        if self.flaw == "draws":
            self.mask = np.random.default_rng().uniform(size=self.mask.shape) if not self.done else self.mask
        return self.mask


@dataclass(frozen=True)
class Flawed(Scheduler):
    flaw: str = ""

    def begin(self, problem: Problem) -> Flow:
        return Cut(problem, self.flaw)


BAD_SCHEDULERS = {
    "holds an object": r"state_dict\(\) holds 'held', of other types",
    "stops early": "ends with .* gone, where 40.0% were asked",
    "always due": "refresh\\(\\) does not clear `due`",
    "does not count": "must count in `taken`",
    "stays soft": "its last mask is not binary",
    "goes below": "a mask leaves",
    "draws": "two runs with the same scores gave different masks",
}


@pytest.mark.parametrize("flaw", BAD_SCHEDULERS)
def test_a_bad_scheduler_is_told(flaw: str) -> None:
    with pytest.raises(AssertionError, match=f"scheduler 'Flawed': .*{BAD_SCHEDULERS[flaw]}"):
        check_scheduler(Flawed(flaw))


def test_a_jump_is_told_where_none_is_promised() -> None:
    check_scheduler(Flawed())
    with pytest.raises(AssertionError, match=r"a mask jumps by 1 at step 0; it promises 0\.1"):
        check_scheduler(Flawed(), most=0.1)


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


class Family(Adapter):
    """All that an adapter can say."""

    def recognises(self, given: object) -> bool:
        return isinstance(given, Net)

    def example_inputs(self, model: nn.Module) -> Any:
        return torch.ones(1, 4)

    def loss_of(self, given: Any, seed: int = 0) -> Any:
        return lambda model, batch: model(batch).square().mean()

    def calibration(self, given: Any, n: int = 8, seed: int = 0, progress: bool = False) -> list[Any]:
        return list(torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)).split(2))


def broken(**methods: Any) -> type[Adapter]:
    return type("Broken", (Family,), methods)


BAD_ADAPTERS: list[tuple[dict[str, Any], str]] = [
    ({"recognises": lambda self, given: True}, r"recognises a plain object\(\)"),
    ({"recognises": lambda self, given: False}, "does not recognise a Net"),
    ({"example_inputs": lambda self, model: torch.randn(1, 4)}, "gives others each time"),
    ({"example_inputs": lambda self, model: torch.ones(1, 5)}, "the model does not run on example_inputs"),
    ({"loss_of": lambda self, given, seed=0: None}, "makes calibration batches, but no loss for them"),
    ({"loss_of": lambda self, given, seed=0: lambda m, b: m(b)}, "no finite scalar"),
    ({"loss_of": lambda self, given, seed=0: lambda m, b: m(b["x"])}, "the loss of a calibration batch fails"),
    ({"calibration": lambda self, given, n, seed, progress=0: [torch.ones(9, 4)]}, "of 3 samples holds 9"),
    ({"protect": lambda self, model: ("head",)}, "names .'head'., which is no tensor or module"),
    ({"config": lambda self, model: {"size": (1, 2)}}, "does not survive a trip through JSON"),
    ({"config": lambda self, model: {"size": 1}}, r"build\(\) fails on what config\(\) gave: SaveError"),
    (
        {"config": lambda self, model: {"size": 1}, "build": lambda self, config: Net()},
        "must leave parameters on the meta device",
    ),
]


@pytest.mark.parametrize(("methods", "message"), BAD_ADAPTERS, ids=[m for _, m in BAD_ADAPTERS])
def test_a_bad_adapter_is_told(methods: dict[str, Any], message: str) -> None:
    check_adapter(Family, Net())
    with pytest.raises(AssertionError, match=f"adapter 'Broken': .*{message}"):
        check_adapter(broken(**methods), Net())


# ---- the example ----------------------------------------------------------------------------------------------------


def test_the_example_plugin_installs_and_passes_its_own_tests(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    for file in sorted(EXAMPLE.rglob("*")):
        if file.suffix in (".py", ".toml", ".md") and "build" not in file.parts:  # a build leaves folders beside
            copy = source / file.relative_to(EXAMPLE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(site), str(source)], check=True)
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=source, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert "2 passed" in done.stdout, done.stdout + done.stderr
