"""What the checks of a plugin have in common: how it is named, and networks to try it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import registry
from fxprune.graph.analysis import analyse
from fxprune.graph.channels import ChannelGraph


@dataclass(frozen=True)
class Claims:
    """A plugin under test, by the name that errors give it."""

    who: str

    @classmethod
    def of(cls, kind: registry.Kind, what: str, plugin: Any) -> Claims:
        """Name a plugin, a class, an instance or a registered name, with its package if it is a third party's."""
        if isinstance(plugin, str):
            name, package = plugin, registry.package(kind, plugin)
        else:
            made = plugin if isinstance(plugin, type) else type(plugin)
            name, package = getattr(plugin, "__name__", made.__name__), registry.package_of(kind, made)
        return cls(f"{what} {name!r}" + (f" of package {package!r}" if package else ""))

    def fail(self, what: str) -> NoReturn:
        """Raise an AssertionError."""
        raise AssertionError(f"{self.who}: {what}")

    def hold(self, condition: bool, what: str) -> None:
        """Fail with `what` unless the condition holds."""
        if not condition:
            self.fail(what)

    @contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """An error within becomes an AssertionError that says what was being done."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as e:
            raise AssertionError(f"{self.who}: {doing}: {type(e).__name__}: {e}") from e


class Images(nn.Module):
    """Convolutions (plain, strided, depthwise), batch and group norms, a residual stream, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.down, self.gn = nn.Conv2d(8, 12, 3, stride=2), nn.GroupNorm(2, 12)
        self.head = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.bn(self.stem(x)))
        x = x + self.mix(torch.tanh(self.deep(x)))
        out: Tensor = self.head(torch.tanh(self.gn(self.down(x))).flatten(1))
        return out


class Tokens(nn.Module):
    """An embedding, a raw parameter, a buffer, attention by heads, a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.token = nn.Embedding(5, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.qkv, self.out, self.norm = nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8)
        self.up, self.leave = nn.Linear(8, 12), nn.Linear(12, 5)
        self.place: Tensor
        self.register_buffer("place", torch.randn(1, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x) + self.token + self.place
        q, k, v = self.qkv(x).view(-1, 6, 3, 4, 2).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        out: Tensor = self.leave(torch.tanh(self.up(self.norm(x))).mean(1))
        return out


def images(seed: int) -> Tensor:
    """A batch for `Images`."""
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def tokens(seed: int) -> Tensor:
    """A batch for `Tokens`."""
    return torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Subject:
    """A network with its graph, two batches and a loss."""

    model: nn.Module
    graph: ChannelGraph
    batches: list[Any]

    @staticmethod
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        """Cross entropy with fixed classes, in float32."""
        out = model(batch)
        return F.cross_entropy(out.float(), torch.arange(len(out), device=out.device) % out.shape[1])


MAKERS: dict[str, tuple[type[nn.Module], Callable[[int], Tensor]]] = {
    "Images": (Images, images),
    "Tokens": (Tokens, tokens),
}


def subject(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Subject:
    """A network of random weights, the same each time, its norms' scales apart from one and its biases from zero."""
    make, batch = MAKERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for n, t in (*model.named_parameters(), *model.named_buffers()):
                if t.dim() == 1 and t.is_floating_point():
                    t.uniform_(0.5, 1.5) if n.endswith(("weight", "var")) else t.normal_(0, 0.3)
    model = model.to(device, dtype)
    batches = [b if b.dtype == torch.int64 else b.to(dtype) for b in (batch(1).to(device), batch(2).to(device))]
    return Subject(model, analyse(model, ((batches[0][:2],), {})), batches)
