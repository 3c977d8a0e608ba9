"""Networks with residual branches of every shape, and some that only look like one.

NETS: name -> (class, example inputs, the blocks that have to be found)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(c, 2 * c), nn.Linear(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Attention(nn.Module):
    """Gives a pair, as many libraries do."""

    def __init__(self, c: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(c, 3 * c), nn.Linear(c, c)

    def forward(self, x: Tensor, need_weights: bool = False) -> tuple[Tensor, None]:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(b, n, c)), None


class PreNorm(nn.Module):
    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(c), Attention(c), nn.LayerNorm(c), Mlp(c)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(PreNorm() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.norm, self.head = nn.Linear(5, 16), Mlp(16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.norm(x + self.mlp(x)))


class Basic(nn.Module):
    """As in torchvision: the sum is written into the branch."""

    def __init__(self, c: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        same = c == out and stride == 1
        self.down = None if same else nn.Sequential(nn.Conv2d(c, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return F.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(12, 4)
        self.layers = nn.Sequential(Basic(8, 8, 1), Basic(8, 12, 2), Basic(12, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


class UShape(nn.Module):
    """What is added comes from below; there, too, is a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.up = (
            nn.Conv2d(3, 8, 3, 1, 1),
            nn.Conv2d(8, 12, 2, 2),
            nn.ConvTranspose2d(12, 8, 2, 2),
        )
        self.middle, self.head = nn.Conv2d(12, 12, 3, 1, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        low = F.silu(self.down(x))
        low = low + self.middle(low)
        return self.head(x + self.up(low))


class AdaBlock(nn.Module):
    def __init__(self, c: int = 16) -> None:
        super().__init__()
        self.ada, self.norm = nn.Linear(6, 6 * c), nn.LayerNorm(c, elementwise_affine=False)
        self.attn, self.mlp = Attention(c), Mlp(c)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        a, b, c, d, e, f = self.ada(F.silu(cond))[:, None].chunk(6, -1)
        x = x + c * self.attn(self.norm(x) * (1 + a) + b)[0]
        return x + f * self.mlp(self.norm(x) * (1 + d) + e)


class Ada(nn.Module):
    """Gates, shifts and scales from a condition, as in a DiT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head, self.time = nn.Linear(5, 16), nn.Linear(16, 3), nn.Linear(4, 6)
        self.blocks = nn.ModuleList(AdaBlock() for _ in range(2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x, cond = self.embed(x), self.time(t)
        for block in self.blocks:
            x = block(x, cond=cond)
        return self.head(x)


class LayerScale(nn.Module):
    """A weight of the outer module scales the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.head = nn.Linear(5, 16), Mlp(16), nn.Linear(16, 3)
        self.gamma = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.gamma * self.mlp(x))


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(5, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.attn, self.mlp = Attention(16), Mlp(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.head(x + self.attn(y)[0] + self.mlp(y))


class Injection(nn.Module):
    """Nothing here starts at the stream: positions, a table, a time embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.other, self.head = nn.Embedding(7, 16), nn.Embedding(7, 16), nn.Linear(16, 3)
        self.place, self.time = nn.Parameter(torch.randn(5, 16)), nn.Linear(4, 16)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.head(self.embed(x) + self.other(x) + self.place + self.time(t)[:, None])


class Escapes(nn.Module):
    """What is added is read elsewhere, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.head = nn.Linear(5, 16), Mlp(16), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.mlp(x)
        return self.head(torch.cat([x + y, y], -1))


class Shared(nn.Module):
    """One module at work inside and outside of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp, self.head = nn.Linear(5, 16), Mlp(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(self.embed(x))
        return self.head(x + self.mlp(x))


class Tied(nn.Module):
    """A weight of the branch is the weight of what stays, too, and is called after the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.embed, self.other = Mlp(16), nn.Linear(5, 16), nn.Linear(16, 32)
        self.head = nn.Linear(32, 3)
        self.other.weight = self.mlp.up.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.other(x + self.mlp(x)))


class Rough(nn.Module):
    """Its Python reads a weight of one branch, and adds what a branch of zeros does not give for another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 16), nn.Linear(16, 3)
        self.a, self.b, self.c = Mlp(16), Mlp(16), Mlp(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.a(x.to(self.a.up.weight.dtype))
        x = x + self.b(x).cos()
        return self.head(x + self.c(x))


def _tokens(b: int) -> tuple[Tensor, ...]:
    return (torch.randn(b, 6, 5),)


def _images(b: int) -> tuple[Tensor, ...]:
    return (torch.randn(b, 3, 8, 8),)


def _timed(b: int) -> tuple[Tensor, ...]:
    return (torch.randn(b, 6, 5), torch.randn(b, 4))


def _ids(b: int) -> tuple[Tensor, ...]:
    return (torch.randint(7, (b, 5)), torch.randn(b, 4))


_PAIRS = [f"blocks.{i}.{part}" for i in range(2) for part in ("attn", "mlp")]
NETS: dict[str, tuple[type[nn.Module], Any, list[str]]] = {
    "pre-norm": (Transformer, _tokens, _PAIRS),
    "post-norm": (PostNorm, _tokens, ["mlp"]),
    "resnet": (ResNet, _images, ["layers.0", "layers.1", "layers.2"]),
    "u-shape": (UShape, _images, ["middle", "up"]),
    "ada": (Ada, _timed, _PAIRS),
    "layer scale": (LayerScale, _tokens, ["mlp"]),
    "parallel": (Parallel, _tokens, ["attn", "mlp"]),
    "injection": (Injection, _ids, []),
    "escapes": (Escapes, _tokens, []),
    "shared": (Shared, _tokens, []),
    "tied": (Tied, _tokens, ["mlp.down"]),
    "rough": (Rough, _tokens, ["a", "b", "c"]),
}


def made(name: str) -> tuple[nn.Module, Any, list[str]]:
    """A network with random statistics, a function from a batch size to inputs, and the names of its blocks."""
    torch.manual_seed(0)
    cls, inputs, blocks = NETS[name]
    net = cls()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.1, 0.3)  # type: ignore[arg-type]
    return net.eval(), inputs, blocks
