"""Small networks, one for each way in which channels couple: name -> (module, example inputs, share to prune)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fxprune
from fxprune.graph.modules import Inputs, as_inputs

CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], float]] = {}


def case(inputs: Callable[[], Any], share: float = 0.3) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def register(cls: type[nn.Module]) -> type[nn.Module]:
        CASES[cls.__name__] = (cls, inputs, share)
        return cls

    return register


def image(c: int = 3, side: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, c, side, side)


def tokens(n: int = 6, c: int = 8) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, n, c)


class Seq(nn.Module):
    """Layers one after the other, by `layers()`."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(*self.layers())

    def layers(self) -> list[nn.Module]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@case(image())
class Transposed(Seq):
    def layers(self) -> list[nn.Module]:
        return [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.ConvTranspose2d(16, 12, 3), nn.PReLU(12), nn.Conv2d(12, 4, 1)]


@case(image())
class TransposedGroups(Seq):
    def layers(self) -> list[nn.Module]:
        return [nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 4, 1)]


@case(image())
class TransposedDepthwise(Seq):
    def layers(self) -> list[nn.Module]:
        return [nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 4, 1)]


@case(lambda: torch.randn(2, 3, 20))
class OneDimensional(Seq):
    def layers(self) -> list[nn.Module]:
        return [nn.Conv1d(3, 16, 3), nn.InstanceNorm1d(16, affine=True), nn.Conv1d(16, 16, 3, groups=2), nn.GELU(),
                nn.AvgPool1d(2), nn.ConvTranspose1d(16, 6, 2), nn.Conv1d(6, 4, 1)]  # fmt: skip


@case(lambda: torch.randn(2, 3, 4, 6, 6))
class ThreeDimensional(Seq):
    def layers(self) -> list[nn.Module]:
        return [
            nn.Conv3d(3, 16, 3, padding=1),
            nn.BatchNorm3d(16),
            nn.MaxPool3d(2),
            nn.ConvTranspose3d(16, 8, 2),
            nn.Conv3d(8, 2, 1),
        ]


@case(image())
class Shuffles(Seq):
    def layers(self) -> list[nn.Module]:
        return [
            nn.Conv2d(3, 16, 3, padding=1),
            nn.PixelUnshuffle(2),
            nn.Conv2d(64, 32, 1),
            nn.PixelShuffle(2),
            nn.Conv2d(8, 4, 1),
        ]


@case(image())
class Parametrized(Seq):
    def layers(self) -> list[nn.Module]:
        first, second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 12, 3)
        norm = parametrizations.weight_norm
        return [norm(first), nn.ReLU(), norm(second), nn.ReLU(), nn.Conv2d(12, 4, 1)]


@case(image())
class Spectral(Seq):
    def layers(self) -> list[nn.Module]:
        return [
            nn.Conv2d(3, 16, 3),
            nn.ReLU(),
            parametrizations.spectral_norm(nn.Conv2d(16, 12, 3)),
            nn.ReLU(),
            nn.Conv2d(12, 4, 1),
        ]


@case(image())
class ResponseNorm(Seq):
    def layers(self) -> list[nn.Module]:
        return [nn.Conv2d(3, 16, 3), nn.LocalResponseNorm(3), nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 4, 1)]


@case(image())
class Unflattened(Seq):
    def layers(self) -> list[nn.Module]:
        return [
            nn.Conv2d(3, 16, 8),
            nn.Flatten(),
            nn.Linear(16, 24),
            nn.ReLU(),
            nn.Unflatten(1, (6, 4)),
            nn.Flatten(),
            nn.Linear(24, 4),
        ]


@case(image())
class Called(nn.Module):
    """One module called twice, inside a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.mid(F.relu(self.mid(x))) + x)


@case(lambda: torch.randint(0, 11, (2, 5)))
class Tied(nn.Module):
    """Embedding and head share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b = nn.Embedding(11, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, i: Tensor) -> Tensor:
        x = self.embed(i)
        return self.head(self.norm(x + self.b(F.relu(self.a(x)))))


@case(tokens())
class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.att, self.o = nn.Linear(8, 16), nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        return self.o(x + self.att(x, x, x, need_weights=False)[0])


@case(tokens())
class Gqa(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h, self.kv, self.d = 6, 2, 4
        self.i, self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(12, 24), nn.Linear(12, 8), nn.Linear(12, 8)
        self.norm, self.o, self.out = nn.RMSNorm(4), nn.Linear(24, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        b, n, _ = x.shape
        q = self.norm(self.q(x).view(b, n, self.h, self.d)).transpose(1, 2)
        k, v = (f(x).view(b, n, self.kv, self.d).transpose(1, 2) for f in (self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(x + self.o(y.transpose(1, 2).flatten(2)))


@case(tokens())
class Biased(nn.Module):
    """A learned table of biases for each head, looked up by an index buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.o, self.i, self.out = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(8, 16), nn.Linear(16, 3)
        self.table = nn.Parameter(torch.randn(11, 4))
        self.register_buffer("index", torch.randint(0, 11, (6, 6)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1)
        a = (q @ k.transpose(-2, -1) * 0.5 + bias[None]).softmax(-1)
        return self.out(x + self.o((a @ v).transpose(1, 2).flatten(2)))


@case(image(side=8))
class Windows(nn.Module):
    """Windows and shifts, as in Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.i, self.a, self.b, self.o = (
            4,
            nn.Conv2d(3, 12, 1),
            nn.Linear(12, 20),
            nn.Linear(20, 12),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        y = torch.roll(x, (-2, -2), (1, 2))
        y = (
            y.view(b, h // self.w, self.w, w // self.w, self.w, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(-1, self.w * self.w, c)
        )
        y = self.b(F.gelu(self.a(y)))
        y = y.view(b, h // self.w, w // self.w, self.w, self.w, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
        return self.o(x + torch.roll(y, (2, 2), (1, 2)))


@case(image())
class Unfolded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.mix, self.o = nn.Conv2d(3, 8, 1), nn.Conv1d(32, 32, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.unfold(F.relu(self.i(x)), 2, stride=2)
        return self.o(F.fold(self.mix(x), (8, 8), 2, stride=2))


@case(image())
class Written(nn.Module):
    """In-place writes into a buffer made in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(14, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        out = torch.cat([torch.zeros_like(a), b], 1)
        out[:, : a.shape[1]] += a
        return self.o(F.relu(out))


@case(image())
class Regions(nn.Module):
    """no_grad and autocast regions become higher-order ops."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        with torch.no_grad():
            gate = x.sigmoid()
        with torch.autocast("cpu", enabled=False):
            y = self.b(x)
        return self.o(y * gate)


@case(tokens())
class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 4, 5))
        self.u = nn.Parameter(torch.randn(4, 5, 12))
        self.o = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bnc,chd->bnhd", x, self.w)
        return self.o(torch.einsum("...hd,hde->...e", F.relu(h), self.u))


@case(tokens())
class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.i, self.r = nn.Linear(8, 16), nn.GRU(16, 12, 2, batch_first=True, bidirectional=True)
        self.h, self.o = nn.Linear(24, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.relu(self.h(self.r(self.i(x))[0])))


@case(lambda: (torch.randn(2, 6), torch.randn(2, 5)))
class TwoStreams(nn.Module):
    """Bilinear product of two streams; a view sized by the other stream."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.m, self.o = nn.Linear(6, 12), nn.Linear(5, 12), nn.Bilinear(12, 12, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(y))
        return self.o(F.relu(self.m(a, b.view(-1, a.shape[-1]))))


@case(lambda: torch.randint(0, 9, (3, 4)))
class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.a, self.o = nn.EmbeddingBag(9, 24, mode="mean"), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, i: Tensor) -> Tensor:
        return self.o(F.relu(self.a(self.bag(i))))


@case(tokens())
class Normalised(nn.Module):
    """L2-normalised features in an inner product, a hand-written layer norm, stack and unbind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.g = nn.Linear(8, 16), nn.Linear(8, 16), nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.stack([self.a(x), self.b(x)], 1).unbind(1)
        a = (a - a.mean(-1, keepdim=True)) / torch.sqrt(a.var(-1, keepdim=True, unbiased=False) + 1e-5) * self.g
        return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(1, 2)


@case(image())
class Padded(nn.Module):
    """A shortcut padded on the channel axis: the padding stays, the rest may go."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.o(F.relu(self.b(x) + F.pad(x, (0, 0, 0, 0, 0, 4))))


@case(image(), share=0.2)
class Standardised(nn.Module):
    """Weights standardised in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.stem, self.o = nn.Parameter(torch.randn(16, 8, 3, 3)), nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        w = F.batch_norm(self.w.reshape(1, self.w.shape[0], -1), None, None, training=True).reshape(self.w.shape)
        return self.o(F.relu(F.conv2d(self.stem(x), w)))


@case(tokens())
class Gathered(nn.Module):
    """Class tokens of two streams are mixed by a convolution over the stream axis: its kernel steps over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.mix = nn.Linear(8, 16), nn.Linear(8, 16), nn.Conv1d(2, 1, 1)
        self.u, self.o = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.a(x)[:, 0], self.b(x)[:, 0]], 1)
        return self.o(F.relu(self.u(self.mix(both).squeeze(1))))


@case(image())
class Tiled(nn.Module):
    """A table for one window, repeated over the image by a `tile` that names the last axes only; its tail is unread."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 3, 1)
        self.window, self.table = nn.Parameter(torch.randn(1, 16, 4, 4)), nn.Parameter(torch.randn(99, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x) + self.window.tile((2, 2)) + self.table[: x.shape[2]].t()[None, :, None]
        return self.o(F.relu(x))


@case(tokens())
class Disentangled(nn.Module):
    """Scores of relative positions are looked up by `gather`: heads pass, positions stay."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.q, self.v, self.o = 4, nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 3)
        self.p, self.table = nn.Linear(8, 32), nn.Parameter(torch.randn(11, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.v))
        p = self.p(self.table).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        n = x.shape[1]
        far = torch.arange(n)[:, None] - torch.arange(n)[None] + n - 1
        scores = torch.gather(q @ p.transpose(-1, -2), -1, far.expand(x.shape[0], q.shape[1], n, n))
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@case(tokens())
class Temperature(nn.Module):
    """The temperature is computed from a size in the forward: heads go, their dimensions stay."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.o = 4, nn.Linear(8, 96), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        weights = (4 * q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


class Table:
    """A plain object that keeps a tensor."""

    made: Tensor | None = None

    def of(self, n: int) -> Tensor:
        if self.made is None:
            self.made = torch.arange(n).float()
        return self.made


@case(image())
class Keeping(nn.Module):
    """Keeps a table that it makes in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.kept = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 4, 1), None
        self.cache: dict[int, Tensor] = {}
        self.table = Table()

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.arange(x.shape[-1]).float()
        if x.shape[-1] not in self.cache:
            self.cache[x.shape[-1]] = torch.arange(x.shape[-1]).float()
        return self.b(torch.relu(self.a(x) * self.kept + self.cache[x.shape[-1]] + self.table.of(x.shape[-1])))


@case(image())
class Sampling(nn.Module):
    """A forward that draws noise, as a variational autoencoder's."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = (
            nn.Conv2d(3, 12, 1),
            nn.Conv2d(12, 8, 1),
            nn.Conv2d(4, 12, 1),
            nn.Conv2d(12, 3, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean, scale = self.b(torch.relu(self.a(x))).chunk(2, 1)
        return self.o(torch.relu(self.c(mean + scale.exp() * torch.randn(mean.shape))))


@case(tokens())
class Contractions(nn.Module):
    """addmm, baddbmm, addmv-like products, tensordot, outer products."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.w, self.c = nn.Linear(8, 16), nn.Parameter(torch.randn(16, 12)), nn.Parameter(torch.randn(12))
        self.k, self.t = nn.Parameter(torch.randn(1, 6, 12)), nn.Parameter(torch.randn(12, 3, 10))
        self.u, self.v, self.o = nn.Parameter(torch.randn(10)), nn.Parameter(torch.randn(14)), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = F.relu(torch.addmm(self.c, self.i(x).reshape(b * n, -1), self.w)).view(b, n, -1)
        x = torch.baddbmm(self.k, x @ x.transpose(1, 2), x, alpha=0.1)
        x = torch.tensordot(x, self.t, dims=([2], [0])).sum(2)
        return self.o(F.relu(x @ torch.outer(self.u, self.v)))


@case(tokens())
class Masked(nn.Module):
    """Attention with a mask made in the forward, a learned bias a head, and keys that are repeated for the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.kv, self.i, self.q, self.k = 6, 2, nn.Linear(8, 16), nn.Linear(16, 24), nn.Linear(16, 8)
        self.v, self.o, self.out = nn.Linear(16, 8), nn.Linear(24, 16), nn.Linear(16, 3)
        self.bias = nn.Parameter(torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.h, -1).transpose(1, 2)
        k, v = (f(x).view(b, n, self.kv, -1).transpose(1, 2).repeat_interleave(3, 1) for f in (self.k, self.v))
        late = torch.ones(n, n).tril().log() + self.bias * torch.arange(n)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=late)
        return self.out(x + self.o(y.transpose(1, 2).flatten(2)))


@case(tokens())
class Ordered(nn.Module):
    """Sums, turns and orders along the tokens leave channels alone; a sum along channels holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(torch.flip(F.relu(self.a(x)), (1,)), 1)
        x = torch.sort(x, 1)[0] + torch.cummax(x, 1)[0] + torch.roll(x, 1, 1)
        return self.d(F.relu(self.c(torch.cumsum(self.b(x), -1))))


@case(image())
class Fourier(nn.Module):
    """A Fourier operator: complex weights mix the channels of low frequencies, and filters weigh each by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.o = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 3, 1)
        self.mix = nn.Parameter(torch.randn(12, 12, 4, 3, dtype=torch.cfloat) / 12)
        self.filters = nn.Parameter(torch.randn(16, 8, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        waves = torch.fft.rfft2(x)
        low = torch.zeros_like(waves)
        low[:, :, :4, :3] = torch.einsum("bixy,ioxy->boxy", waves[:, :, :4, :3], self.mix)
        x = F.gelu(self.c(x + torch.fft.irfft2(low, s=x.shape[-2:])))
        waves = torch.fft.fftshift(torch.fft.rfftn(x, s=x.shape[2:]), (2,)) * torch.view_as_complex(self.filters)
        return self.o(torch.fft.irfft(torch.fft.ifft(waves, dim=2), n=8))


@functools.lru_cache
def split_heads(shape: torch.Size, heads: int) -> tuple[int, ...]:
    """The shape of the heads apart, memoised as in einops."""
    return *shape[:-1], heads, shape[-1] // heads


@case(tokens())
class Memoised(nn.Module):
    """Layers of as many heads share what a memoised function answered, but not the integers they own."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.o = nn.Linear(8, 16), nn.Linear(16, 3)
        self.layers = nn.ModuleList(MemoisedLayer() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.i(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.o(x)


class MemoisedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.qkv, self.mix, self.out = nn.Linear(16, 48), nn.Parameter(torch.randn(4, 4)), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.reshape(split_heads(t.shape, self.heads)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        seen = torch.einsum("bhij,hg->bgij", (q @ k.mT).softmax(-1), self.mix)
        return self.out((seen @ v).transpose(1, 2).flatten(2))


@case(image())
class Coordinates(nn.Module):
    """A grid of positions joins the channels; the image is resized and sampled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(18, 12, 1), nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(F.relu(self.a(x)), scale_factor=2, mode="bilinear")
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        grid = torch.stack([rows, columns])[None].expand(x.shape[0], -1, -1, -1) / 16
        x = F.relu(self.b(torch.cat([x, grid], 1)))
        return self.c(F.grid_sample(x, grid.permute(0, 2, 3, 1), align_corners=False))


@case(tokens())
class Cells(nn.Module):
    """An LSTM, and cells that step by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.i, self.r, self.l = nn.Linear(8, 16), nn.LSTM(16, 12, batch_first=True), nn.LSTMCell(12, 10)
        self.g, self.h, self.o = nn.GRUCell(10, 9), nn.Linear(9, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.r(F.relu(self.i(x)))[0]
        h, _ = self.l(x[:, 0])
        h, _ = self.l(x[:, 1], (h, h))
        return self.o(F.relu(self.h(self.g(h))))


@case(tokens())
class ComplexRotary(nn.Module):
    """Rotary positions as complex numbers: heads go, their dimensions stay."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.qkv, self.o = 4, nn.Linear(8, 96), nn.Linear(32, 3)
        self.register_buffer("angle", torch.outer(torch.arange(6.0), torch.tensor([1.0, 0.1, 0.01, 0.001])))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.h, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        turn = torch.polar(torch.ones_like(self.angle), self.angle)
        q, k = (
            torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(3)
            for t in (q, k)
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@case(tokens())
class Similar(nn.Module):
    """Features are compared with each other and with prototypes; the results are copied into a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.p = nn.Linear(8, 16), nn.Linear(8, 16), nn.Parameter(torch.randn(7, 16))
        self.c, self.o = nn.Linear(8, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        out = torch.empty(x.shape[0], x.shape[1], 8)
        out[..., :7].copy_(torch.cdist(a, self.p))
        out[..., 7].copy_(F.cosine_similarity(a, b, dim=-1))
        return self.o(F.relu(self.c(out)))


@case(image())
class Averaged(nn.Module):
    """A mean over channels, whose third argument is `keepdim`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x - x.mean(1, True))  # type: ignore[no-any-return]


@case(image())
class InSpace(nn.Module):
    """Ops that hang on order and places along spatial axes only."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        borders = torch.linspace(-1, 1, 5)
        places = torch.bucketize(y, borders) + torch.searchsorted(borders, y.contiguous())
        y = y + torch.rot90(y, 1, (2, 3)) + y.tril() + torch.diag_embed(y.diagonal(dim1=2, dim2=3))
        y = y + torch.take_along_dim(y, y.argsort(-1), -1) + places.to(y.dtype)
        return self.out(y - y.kthvalue(3, -1, keepdim=True).values - torch.trapezoid(y, dim=-1)[..., None])


@case(lambda: torch.randn(2, 3, 32))
class Spectrogram(nn.Module):
    """A short-time Fourier transform of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Conv1d(3, 16, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        spectrum = torch.stft(y.flatten(0, 1), 8, 4, window=torch.hann_window(8), return_complex=True).abs()
        return self.out(spectrum.unflatten(0, (x.shape[0], -1)))


def made(name: str) -> tuple[nn.Module, Inputs]:
    """A network of the table, in eval mode, and its inputs."""
    torch.manual_seed(0)
    cls, inputs, _ = CASES[name]
    return cls().eval(), as_inputs(inputs())


def random_scores(graph: fxprune.ChannelGraph, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.name: rng.random(len(g)) for g in graph.groups}
