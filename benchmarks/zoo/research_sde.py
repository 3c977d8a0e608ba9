"""As score_sde writes NCSN++: one flat list of modules walked by a number, 1x1 layers by einsum, FIR resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from research_ddim import waves
from torch import Tensor, nn


class Nin(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(i, o) / math.sqrt(i)), nn.Parameter(torch.zeros(o))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.einsum("bhwc,cd->bhwd", x.permute(0, 2, 3, 1), self.W) + self.b).permute(0, 3, 1, 2)


class NinAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (Nin(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        h = self.GroupNorm_0(x)
        q, k, v = self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)
        w = torch.einsum("bchw,bcij->bhwij", q, k) * (int(c) ** (-0.5))
        w = F.softmax(torch.reshape(w, (b, height, width, height * width)), dim=-1)
        w = torch.reshape(w, (b, height, width, height, width))
        return (x + self.NIN_3(torch.einsum("bhwij,bcij->bchw", w, v))) / np.sqrt(2.0)


def blurred(x: Tensor, up: int = 1, down: int = 1) -> Tensor:
    """Resampled with a binomial filter, a channel at a time by folding channels into the batch."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype, device=x.device)
    kernel = torch.outer(taps, taps) / 64 * up**2
    _, c, h, w = x.shape
    x = x.reshape(-1, 1, h, w)
    if up > 1:
        x = x.view(-1, 1, h, 1, w, 1)
        x = F.pad(x, [0, up - 1, 0, 0, 0, up - 1]).view(-1, 1, h * up, w * up)
    before, after = (2, 1) if up > 1 else (1, 1)
    x = F.conv2d(F.pad(x, [before, after, before, after]), kernel[None, None])[:, :, ::down, ::down]
    return x.reshape(-1, c, x.shape[2], x.shape[3])


class BigGanBlock(nn.Module):
    def __init__(self, i: int, o: int, time: int, up: bool = False, down: bool = False) -> None:
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(min(i // 4, 32), i, eps=1e-6)
        self.up, self.down, self.in_ch, self.out_ch = up, down, i, o
        self.Conv_0, self.Dense_0 = nn.Conv2d(i, o, 3, padding=1), nn.Linear(time, o)
        self.GroupNorm_1 = nn.GroupNorm(min(o // 4, 32), o, eps=1e-6)
        self.Dropout_0, self.Conv_1 = nn.Dropout(0.1), nn.Conv2d(o, o, 3, padding=1)
        if i != o or up or down:
            self.Conv_2 = nn.Conv2d(i, o, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.up:
            h, x = blurred(h, up=2), blurred(x, up=2)
        elif self.down:
            h, x = blurred(h, down=2), blurred(x, down=2)
        h = self.Conv_0(h) + self.Dense_0(F.silu(temb))[:, :, None, None]
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h))))
        if self.in_ch != self.out_ch or self.up or self.down:
            x = self.Conv_2(x)
        return (x + h) / np.sqrt(2.0)


class ScoreSde(nn.Module):
    """NCSN++ with progressive input and output, its layers in one list."""

    def __init__(self, nf: int = 32, mult: Sequence[int] = (1, 2), blocks: int = 1, fourier: bool = True) -> None:
        super().__init__()
        self.nf, self.levels, self.blocks, self.fourier = nf, len(mult), blocks, fourier
        modules: list[nn.Module] = []
        if fourier:
            self.register_buffer("W", torch.randn(nf) * 16)
        modules += [
            nn.Linear(2 * nf if fourier else nf, 4 * nf),
            nn.Linear(4 * nf, 4 * nf),
            nn.Conv2d(3, nf, 3, padding=1),
        ]
        widths, o = [nf], nf
        for level, m in enumerate(mult):
            for _ in range(blocks):
                modules.append(BigGanBlock(o, nf * m, 4 * nf))
                o = nf * m
                if level == 1:
                    modules.append(NinAttention(o))
                widths.append(o)
            if level + 1 < len(mult):
                modules += [BigGanBlock(o, o, 4 * nf, down=True), nn.Conv2d(3, o, 1)]
                widths.append(o)
        modules += [BigGanBlock(o, o, 4 * nf), NinAttention(o), BigGanBlock(o, o, 4 * nf)]
        for level in reversed(range(len(mult))):
            for _ in range(blocks + 1):
                modules.append(BigGanBlock(o + widths.pop(), nf * mult[level], 4 * nf))
                o = nf * mult[level]
            if level == 1:
                modules.append(NinAttention(o))
            modules += [nn.GroupNorm(min(o // 4, 32), o, eps=1e-6), nn.Conv2d(o, 3, 3, padding=1)]
            if level:
                modules.append(BigGanBlock(o, o, 4 * nf, up=True))
        self.all_modules = nn.ModuleList(modules)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        modules, m = self.all_modules, 0
        if self.fourier:
            angle = torch.log(sigma)[:, None] * self.W[None] * 2 * np.pi
            temb = torch.cat([angle.sin(), angle.cos()], -1)
        else:
            temb = waves(sigma, self.nf)
        temb = modules[m + 1](F.silu(modules[m](temb)))
        pyramid, hs = x, [modules[m + 2](x)]
        m += 3
        for level in range(self.levels):
            for _ in range(self.blocks):
                h = modules[m](hs[-1], temb)
                m += 1
                if level == 1:
                    h = modules[m](h)
                    m += 1
                hs.append(h)
            if level + 1 < self.levels:
                h = modules[m](hs[-1], temb)
                pyramid = blurred(pyramid, down=2)
                hs.append(h + modules[m + 1](pyramid))
                m += 2
        h = modules[m + 2](modules[m + 1](modules[m](hs[-1], temb)), temb)
        m += 3
        out = None
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                h = modules[m](torch.cat([h, hs.pop()], dim=1), temb)
                m += 1
            if level == 1:
                h = modules[m](h)
                m += 1
            more = modules[m + 1](F.silu(modules[m](h)))
            out = more if out is None else blurred(out, up=2) + more
            m += 2
            if level:
                h = modules[m](h, temb)
                m += 1
        assert m == len(modules)
        return out / sigma.reshape((x.shape[0], *([1] * len(x.shape[1:]))))
