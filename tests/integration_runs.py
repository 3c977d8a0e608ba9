"""What the test of integrations under two processes starts: torchrun ... integration_runs.py DIR.

Every process writes what it found: told-RANK.json.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fxprune

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 20}
TEXTS = [{"input_ids": (x := (torch.arange(6) * k) % 20), "labels": x} for k in range(1, 17)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch[:, :2]).square().mean()


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2))


def found(model: nn.Module, **more: Any) -> dict[str, Any]:
    """The plan, and a number that tells the weights."""
    weights = {name: value.double().sum().item() for name, value in model.state_dict().items()}
    return {"plan": fxprune.report(model).plan.to_json(), "weights": weights, **more}


def with_accelerate(folder: Path) -> dict[str, Any]:
    from accelerate import Accelerator

    from fxprune.integrations.accelerate import prepared

    def begun() -> tuple[Any, Any, Any, Any]:
        model = net()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(X, 2))
        given = {"steps": 20, "loss": loss, "criterion": "taylor", "example_inputs": X[:2]}
        return prepared(accelerator, model, optimizer, **given), optimizer, loader, model

    def go(pruning: Any, optimizer: Any, loader: Any, epochs: int) -> None:
        for _ in range(epochs):  # of four steps each
            for batch in loader:
                accelerator.backward(loss(pruning.model, batch))
                optimizer.step()
                optimizer.zero_grad()
                pruning.step(batch)

    accelerator = Accelerator(cpu=True)
    pruning, optimizer, loader, wrapped = begun()
    kind = type(wrapped).__name__
    go(pruning, optimizer, loader, 3)
    accelerator.save_state(str(folder / "half"))
    go(pruning, optimizer, loader, 3)
    accelerator.save_state(str(folder / "end"))
    inner = accelerator.unwrap_model(pruning.model)
    end = found(inner, kind=kind, after=type(pruning.model).__name__)
    accelerator.free_memory()
    accelerator = Accelerator(cpu=True)
    pruning, optimizer, loader, _ = begun()
    accelerator.load_state(str(folder / "half"))
    go(pruning, optimizer, loader, 3)
    end["again"] = found(accelerator.unwrap_model(pruning.model))["weights"]
    return end


def with_transformers(folder: Path) -> dict[str, Any]:
    from transformers import Trainer, TrainingArguments

    from fxprune.integrations.transformers import soft_pruning

    given = {"max_steps": 24, "per_device_train_batch_size": 2, "save_steps": 12, "report_to": [], "use_cpu": True}
    given |= {"logging_steps": 100, "disable_tqdm": True, "learning_rate": 1e-2, "seed": 0}

    def trainer(model: Any) -> Any:
        made = Trainer(model, TrainingArguments(str(folder / "trainer"), **given), train_dataset=TEXTS)
        soft_pruning(made, 0.3, steps=20, criterion="taylor")
        return made

    model = llama()
    work = trainer(model)
    work.train()
    work.save_model(str(folder / "llama"))
    told = found(model, kind=type(work.model_wrapped).__name__)
    resumed = llama()
    trainer(resumed).train(resume_from_checkpoint=str(folder / "trainer" / "checkpoint-12"))
    return told | {"again": found(resumed)["weights"]}


def with_lightning(folder: Path) -> dict[str, Any]:
    import lightning.pytorch as lightning

    from fxprune.integrations.lightning import PruningCallback

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            return loss(self.net, batch)

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), 1e-2)

    def trained(**more: Any) -> Any:
        module = Module()
        pruning = PruningCallback("net", ratio=0.4, steps=20, criterion="taylor", example_inputs=X[:2])
        keep = lightning.callbacks.ModelCheckpoint(folder / "lightning", every_n_train_steps=12, save_top_k=-1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(
            max_steps=24, accelerator="cpu", devices=2, strategy="ddp", callbacks=[pruning, keep], **quiet
        )
        trainer.fit(module, DataLoader(X, 2), **more)
        trainer.save_checkpoint(folder / "lightning.ckpt")
        return module

    module = trained()
    first = sorted((folder / "lightning").glob("*step=12.ckpt"))[0]
    again = trained(ckpt_path=str(first))
    return found(module.net, again=found(again.net)["weights"])


def main(folder: str) -> None:
    torch.set_num_threads(1)
    runs = {"accelerate": with_accelerate, "transformers": with_transformers, "lightning": with_lightning}
    told = {name: run(Path(folder)) for name, run in runs.items()}
    Path(folder, f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])
