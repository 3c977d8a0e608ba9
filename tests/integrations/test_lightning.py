"""A real lightning Trainer prunes while it trains: the optimizer follows, and its checkpoints load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import fxprune

lightning = pytest.importorskip("lightning.pytorch")
from fxprune.integrations.lightning import PruningCallback, unpruned_to  # noqa: E402 - needs lightning

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
    """A network to prune, and a scale beside it that the same optimizer trains."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        self.scale = nn.Parameter(torch.ones(()))
        self.logged = 0

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        loss = (self.scale * self.net(batch) - batch[:, :2]).square().mean()
        self.log("loss", loss)
        return loss

    def log(self, *args: Any, **kwargs: Any) -> None:
        self.logged += 1
        super().log(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([self.scale, *self.net.parameters()], 1e-2)


def fit(module: Any, folder: Path, steps: int, ckpt: Path | None = None, **options: Any) -> Any:
    given = {"part": "net", "ratio": 0.4, "steps": 20, "criterion": "taylor", "example_inputs": X[:2], **options}
    keep = lightning.callbacks.ModelCheckpoint(folder, save_top_k=-1, every_n_train_steps=12, filename="{step}")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    made = lightning.Trainer(max_steps=steps, callbacks=[PruningCallback(**given), keep], **quiet)
    made.fit(module, DataLoader(X, 4), ckpt_path=ckpt)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    folder = tmp_path_factory.mktemp("run")
    module = Module()
    return fit(module, folder, 24), module, folder


def test_the_part_is_small_and_its_optimizer_went_on(run: tuple[Any, Any, Path]) -> None:
    trainer, module, _ = run
    dense, small = (sum(p.numel() for p in m.net.parameters()) for m in (Module(), module))
    assert small <= 0.62 * dense
    (optimizer,) = trainer.optimizers
    held = [p for g in optimizer.param_groups for p in g["params"]]
    assert [id(p) for p in held] == [id(module.scale), *map(id, module.net.parameters())]
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in held)
    assert int(optimizer.state[held[1]]["step"]) == 24
    assert module.logged == 24, "scoring logs nothing"


def test_both_kinds_of_checkpoints_go_on_to_the_same_network(run: tuple[Any, Any, Path]) -> None:
    _, module, folder = run
    for file in ("step=12.ckpt", "step=24.ckpt"):
        again = Module()
        fit(again, folder / "again", 24, folder / file)
        for name, value in module.state_dict().items():
            assert torch.allclose(value, again.state_dict()[name], atol=1e-6), (file, name)


def test_a_checkpoint_loads_elsewhere(run: tuple[Any, Any, Path]) -> None:
    _, module, folder = run
    made = unpruned_to(folder / "step=24.ckpt", Module(), "net", example_inputs=X[:2])
    made.load_state_dict(torch.load(folder / "step=24.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(made.net(X), module.net(X))
    with pytest.raises(fxprune.SaveError, match="holds no pruned network"):
        unpruned_to(folder / "step=12.ckpt", Module(), "net", example_inputs=X[:2])


def test_errors_tell_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(fxprune.InputsError, match="has no such module; it has net"):
        fit(Module(), tmp_path, 30, part="model")
    with pytest.raises(fxprune.InputsError, match="steps=20: the training takes 3 steps"):
        fit(Module(), tmp_path, 3)
