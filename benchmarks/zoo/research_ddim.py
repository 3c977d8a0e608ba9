"""As ddim writes its UNet (modules as containers, skips in a list, a scale from the shape), and LDM its autoencoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def waves(t: Tensor, width: int) -> Tensor:
    """Sines and cosines of a time."""
    half = width // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device) / (half - 1))
    angle = t.float()[:, None] * rate[None]
    return torch.cat([angle.sin(), angle.cos()], 1)


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels, eps=1e-6)


class DdimBlock(nn.Module):
    def __init__(self, i: int, o: int, time: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels = i, o
        self.norm1, self.conv1 = norm(i), nn.Conv2d(i, o, 3, padding=1)
        self.temb_proj = nn.Linear(time, o)
        self.norm2, self.dropout, self.conv2 = norm(o), nn.Dropout(0.1), nn.Conv2d(o, o, 3, padding=1)
        if i != o:
            self.nin_shortcut = nn.Conv2d(i, o, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return (self.nin_shortcut(x) if self.in_channels != self.out_channels else x) + h


class ShapeAttention(nn.Module):
    """One head over the pixels, as in ddim and in LDM's autoencoder; its scale is read from the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.q(h), self.k(h), self.v(h)
        b, c, height, width = q.shape
        q = q.reshape(b, c, height * width).permute(0, 2, 1)
        k = k.reshape(b, c, height * width)
        w = F.softmax(torch.bmm(q, k) * (int(c) ** (-0.5)), dim=2)
        v = v.reshape(b, c, height * width)
        h = torch.bmm(v, w.permute(0, 2, 1)).reshape(b, c, height, width)
        return x + self.proj_out(h)


class Strided(nn.Module):
    """Halves the sides, after padding on one side only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Nearest(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Ddim(nn.Module):
    def __init__(self, ch: int = 32, mult: Sequence[int] = (1, 2, 2), blocks: int = 1) -> None:
        super().__init__()
        self.ch, self.num_resolutions, self.num_res_blocks, time = ch, len(mult), blocks, 4 * ch
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, time), nn.Linear(time, time)])
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down, widths = nn.ModuleList(), (1, *mult)
        for level in range(len(mult)):
            down, i, o = nn.Module(), ch * widths[level], ch * mult[level]
            down.block = nn.ModuleList([DdimBlock(i if n == 0 else o, o, time) for n in range(blocks)])
            down.attn = nn.ModuleList([ShapeAttention(o) for _ in range(blocks)] if level == 1 else [])
            if level + 1 < len(mult):
                down.downsample = Strided(o)
            self.down.append(down)
        self.mid = nn.Module()
        self.mid.block_1, self.mid.attn_1, self.mid.block_2 = (
            DdimBlock(o, o, time),
            ShapeAttention(o),
            DdimBlock(o, o, time),
        )
        self.up, h = nn.ModuleList(), o
        for level in reversed(range(len(mult))):
            up, o = nn.Module(), ch * mult[level]
            up.block, up.attn = nn.ModuleList(), nn.ModuleList()
            for n in range(blocks + 1):
                skip = o if n < blocks else ch * widths[level]
                up.block.append(DdimBlock(h + skip, o, time))
                h = o
                if level == 1:
                    up.attn.append(ShapeAttention(o))
            if level:
                up.upsample = Nearest(o)
            self.up.insert(0, up)
        self.norm_out, self.conv_out = norm(h), nn.Conv2d(h, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = self.temb.dense[1](F.silu(self.temb.dense[0](waves(t, self.ch))))
        hs = [self.conv_in(x)]
        for level in range(self.num_resolutions):
            for n in range(self.num_res_blocks):
                h = self.down[level].block[n](hs[-1], temb)
                if len(self.down[level].attn) > 0:
                    h = self.down[level].attn[n](h)
                hs.append(h)
            if level != self.num_resolutions - 1:
                hs.append(self.down[level].downsample(hs[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(hs[-1], temb)), temb)
        for level in reversed(range(self.num_resolutions)):
            for n in range(self.num_res_blocks + 1):
                h = self.up[level].block[n](torch.cat([h, hs.pop()], dim=1), temb)
                if len(self.up[level].attn) > 0:
                    h = self.up[level].attn[n](h)
            if level != 0:
                h = self.up[level].upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class LdmVae(nn.Module):
    """LDM's autoencoder: KL with a sampled latent's mean, or (`codes`) a codebook."""

    def __init__(self, ch: int = 32, mult: Sequence[int] = (1, 2), z: int = 4, codes: int = 0) -> None:
        super().__init__()
        top, double = ch * mult[-1], 1 if codes else 2
        self.encoder = nn.ModuleList([nn.Conv2d(3, ch, 3, padding=1)])
        for i, o in zip((1, *mult[:-1]), mult, strict=True):
            self.encoder += [VaeBlock(ch * i, ch * o), Strided(ch * o)]
        self.encoder += [
            VaeBlock(top, top),
            ShapeAttention(top),
            norm(top),
            nn.SiLU(),
            nn.Conv2d(top, double * z, 3, padding=1),
        ]
        self.quant_conv, self.post_quant_conv = nn.Conv2d(double * z, double * z, 1), nn.Conv2d(z, z, 1)
        self.codebook = nn.Embedding(codes, z) if codes else None
        self.decoder = nn.ModuleList([nn.Conv2d(z, top, 3, padding=1), VaeBlock(top, top), ShapeAttention(top)])
        for i, o in zip(reversed(mult), (*reversed(mult[:-1]), 1), strict=True):
            self.decoder += [VaeBlock(ch * i, ch * o), Nearest(ch * o)]
        self.decoder += [norm(ch), nn.SiLU(), nn.Conv2d(ch, 3, 3, padding=1)]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.encoder:
            x = layer(x)
        moments = self.quant_conv(x)
        z = self.coded(moments) if self.codebook is not None else torch.chunk(moments, 2, dim=1)[0]
        y = self.post_quant_conv(z)
        for layer in self.decoder:
            y = layer(y)
        return y, moments

    def coded(self, z: Tensor) -> Tensor:
        assert self.codebook is not None
        flat, book = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]), self.codebook.weight
        apart = flat.pow(2).sum(1, keepdim=True) + book.pow(2).sum(1) - 2 * torch.einsum("bd,dn->bn", flat, book.t())
        found = self.codebook(apart.argmin(1)).view(z.shape[0], z.shape[2], z.shape[3], z.shape[1]).permute(0, 3, 1, 2)
        return z + (found - z).detach()


class VaeBlock(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(i), nn.Conv2d(i, o, 3, padding=1)
        self.norm2, self.conv2 = norm(o), nn.Conv2d(o, o, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(i, o, 1) if i != o else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))
