"""Soft pruning in the loops of others, two processes: one plan, one network, checkpoints that load afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("lightning")
pytest.importorskip("transformers")
import integration_runs
from integration_runs import X, llama, net
from lightning.pytorch import LightningModule
from safetensors.torch import load_file
from torch import nn

import fxprune
from fxprune.integrations.lightning import unpruned_to

SCRIPT = Path(integration_runs.__file__)
LOOPS = ("accelerate", "transformers", "lightning")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes found, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    path = os.pathsep.join([str(SCRIPT.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([*launch, str(SCRIPT), str(folder)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("loop", LOOPS)
def test_both_processes_come_to_one_plan_and_one_network(loop: str, told: Any) -> None:
    first, second = (found[loop] for found in told[1])
    assert first["plan"] == second["plan"]
    assert first["weights"] == second["weights"]
    assert json.loads(first["plan"])["achieved"] == pytest.approx(0.3 if loop == "transformers" else 0.4, abs=0.03)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_checkpoint_of_before_the_cut_goes_on_to_the_same_network(loop: str, told: Any) -> None:
    for found in told[1]:
        assert found[loop]["again"] == pytest.approx(found[loop]["weights"], rel=1e-4, abs=1e-4)


def test_the_small_model_is_distributed_anew(told: Any) -> None:
    found = told[1][0]
    assert found["accelerate"]["kind"] == found["accelerate"]["after"] == "DistributedDataParallel"
    assert found["transformers"]["kind"] == "DistributedDataParallel"


def sums(model: nn.Module) -> dict[str, float]:
    return {name: value.double().sum().item() for name, value in model.state_dict().items()}


def test_what_accelerate_saved_after_the_cut_fits_a_model_cut_alike(told: Any) -> None:
    folder, (found, _) = told
    assert [p.name for p in (folder / "end").glob("*.safetensors")] == ["model.safetensors"]
    small = fxprune.apply(net(), fxprune.Plan.from_json(found["accelerate"]["plan"]), example_inputs=X[:2])
    small.load_state_dict(load_file(folder / "end" / "model.safetensors"))
    assert sums(small) == pytest.approx(found["accelerate"]["weights"])


def test_what_the_trainer_saved_after_the_cut_loads(told: Any) -> None:
    folder, (found, _) = told
    small = fxprune.load(folder / "llama")
    assert sums(small) == pytest.approx(found["transformers"]["weights"])
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in llama().parameters())


def test_what_lightning_saved_after_the_cut_loads(told: Any) -> None:
    folder, (found, _) = told

    class Module(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

    module = unpruned_to(folder / "lightning.ckpt", Module(), "net", example_inputs=X[:2])
    module.load_state_dict(torch.load(folder / "lightning.ckpt", weights_only=True)["state_dict"])
    assert sums(module.net) == pytest.approx(found["lightning"]["weights"])
