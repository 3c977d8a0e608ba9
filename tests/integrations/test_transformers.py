"""A real Trainer prunes while it trains: the optimizer follows, and its checkpoints load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import fxprune
from fxprune.integrations.transformers import PruningCallback, soft_pruning

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 20,
}
TEXTS = [{"input_ids": (x := (torch.arange(6) * k) % 20), "labels": x} for k in range(1, 17)]


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def trainer(model: Any, folder: Path, steps: int = 24, **options: Any) -> Trainer:
    given = {"max_steps": steps, "per_device_train_batch_size": 4, "save_steps": 12, "report_to": [], "use_cpu": True}
    given |= {"logging_steps": 100, "disable_tqdm": True, "learning_rate": 1e-2, "seed": 0, **options}
    return Trainer(model, TrainingArguments(str(folder), **given), train_dataset=TEXTS, eval_dataset=TEXTS)


class Watch(TrainerCallback):  # type: ignore[misc]
    """What the optimizer holds, and whether it trains it."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.weights: list[torch.Tensor] = []
        self.foreign = 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **given: Any) -> None:
        held = [p for g in optimizer.param_groups for p in g["params"]]
        own = {id(p) for p in model.parameters()}
        self.foreign += sum(id(p) not in own for p in held)
        self.sizes.append(sum(p.numel() for p in held))
        self.weights.append(model.model.layers[0].mlp.down_proj.weight.detach().clone())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Watch, Path]:
    folder = tmp_path_factory.mktemp("run")
    work, watch = trainer(llama(), folder), Watch()
    soft_pruning(work, 0.3, steps=20, criterion="taylor")
    work.add_callback(watch)
    work.train()
    return work, watch, folder


def test_the_trained_model_is_the_small_one_and_its_optimizer_went_on(run: tuple[Any, Watch, Path]) -> None:
    work, watch, _ = run
    dense = sum(p.numel() for p in llama().parameters())
    small = sum(p.numel() for p in work.model.parameters())
    assert small <= 0.72 * dense
    assert watch.sizes == [dense] * 19 + [small] * 5
    assert watch.foreign == 0
    assert not torch.equal(watch.weights[-1], watch.weights[-2]), "the small model trains"
    state = work.optimizer.optimizer.state
    assert all(state[p]["exp_avg"].shape == p.shape for p in work.model.parameters())
    assert len(fxprune.report(work.model).history) == 20


def test_a_checkpoint_of_after_the_cut_loads_and_trains_on(run: tuple[Any, Watch, Path], tmp_path: Path) -> None:
    work, _, folder = run
    loaded = fxprune.load(folder / "checkpoint-24")
    assert {n: tuple(t.shape) for n, t in loaded.state_dict().items()} == {
        n: tuple(t.shape) for n, t in work.model.state_dict().items()
    }
    assert torch.equal(loaded.lm_head.weight, work.model.lm_head.weight)
    work.save_model(str(tmp_path / "final"))
    assert torch.equal(fxprune.load(tmp_path / "final").lm_head.weight, work.model.lm_head.weight)
    again = trainer(loaded, folder, steps=26)
    soft_pruning(again, 0.3, steps=20, criterion="taylor")
    again.train(resume_from_checkpoint=str(folder / "checkpoint-24"))
    assert again.state.global_step == 26
    assert sum(p.numel() for p in again.model.parameters()) == sum(p.numel() for p in work.model.parameters())


def test_a_checkpoint_of_before_the_cut_goes_on_to_the_same_model(run: tuple[Any, Watch, Path]) -> None:
    work, _, folder = run
    again = trainer(llama(), folder)
    soft_pruning(again, 0.3, steps=20, criterion="taylor")
    again.train(resume_from_checkpoint=str(folder / "checkpoint-12"))
    assert fxprune.report(again.model).plan.removed == fxprune.report(work.model).plan.removed
    for name, value in work.model.state_dict().items():
        assert torch.allclose(value, again.model.state_dict()[name], atol=1e-5), name


def test_the_callback_alone_scores_by_the_models_own_loss(tmp_path: Path) -> None:
    work = trainer(llama(), tmp_path, steps=21, save_strategy="no")
    work.add_callback(PruningCallback(0.3, steps=20, criterion="taylor"))
    work.train()
    assert fxprune.report(work.model).plan.criterion.startswith("taylor")
    assert not work.model._forward_pre_hooks


def test_what_cannot_end_well_is_refused_before_training(tmp_path: Path) -> None:
    late = trainer(llama(), tmp_path, steps=3, save_strategy="no")
    soft_pruning(late, 0.3, steps=9, criterion="magnitude")
    with pytest.raises(fxprune.InputsError, match="steps=9: the training takes 3 steps"):
        late.train()
    best = trainer(llama(), tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=12)
    soft_pruning(best, 0.3, steps=20, criterion="magnitude")
    with pytest.raises(fxprune.InputsError, match="load_best_model_at_end"):
        best.train()
