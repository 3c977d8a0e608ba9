"""As EDM and EDM2 write their UNets.

EDM: layers with weights of their own, a softmax as an autograd function, blocks in dicts, skips by what is expected.
EDM2: weights normalised whenever they are read, sums and concatenations that keep magnitudes, norms over channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EdmConv(nn.Module):
    def __init__(self, i: int, o: int, kernel: int = 3, up: bool = False, down: bool = False) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.up, self.down = i, o, up, down
        self.weight = nn.Parameter(torch.randn(o, i, kernel, kernel) / math.sqrt(i * kernel**2)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(o)) if kernel else None
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25) if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.to(x.dtype) if self.weight is not None else None
        b = self.bias.to(x.dtype) if self.bias is not None else None
        f = self.resample_filter.to(x.dtype) if self.resample_filter is not None else None
        if self.up:
            x = F.conv_transpose2d(x, f.mul(4).tile([self.in_channels, 1, 1, 1]), groups=self.in_channels, stride=2)
        if self.down:
            x = F.conv2d(x, f.tile([self.in_channels, 1, 1, 1]), groups=self.in_channels, stride=2)
        if w is not None:
            x = F.conv2d(x, w, padding=w.shape[-1] // 2)
        if b is not None:
            x = x.add_(b.reshape(1, -1, 1, 1))
        return x


class EdmLinear(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.in_features, self.out_features = i, o
        self.weight, self.bias = nn.Parameter(torch.randn(o, i) / math.sqrt(i)), nn.Parameter(torch.zeros(o))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.to(x.dtype).t()).add_(self.bias.to(x.dtype))


class EdmNorm(nn.Module):
    def __init__(self, channels: int, groups: int = 32, least: int = 4) -> None:
        super().__init__()
        self.num_groups, self.eps = min(groups, channels // least), 1e-5
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, num_groups=self.num_groups, weight=self.weight.to(x.dtype), bias=self.bias, eps=self.eps)


class AttentionOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:
        w = torch.einsum("ncq,nck->nqk", q.float(), (k / np.sqrt(k.shape[1])).float()).softmax(dim=2).to(q.dtype)
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, Tensor]:
        q, k, w = ctx.saved_tensors
        db = torch._softmax_backward_data(grad_output=dw.float(), output=w.float(), dim=2, input_dtype=torch.float32)
        dq = torch.einsum("nck,nqk->ncq", k.float(), db).to(q.dtype) / np.sqrt(k.shape[1])
        return dq, torch.einsum("ncq,nqk->nck", q.float(), db).to(k.dtype) / np.sqrt(k.shape[1])


class EdmBlock(nn.Module):
    def __init__(
        self, i: int, o: int, emb: int, up: bool = False, down: bool = False, heads: int = 0, adaptive: bool = True
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_heads = i, o, heads
        self.adaptive_scale, self.skip_scale, self.dropout = adaptive, math.sqrt(0.5), 0.1
        self.norm0, self.conv0 = EdmNorm(i), EdmConv(i, o, up=up, down=down)
        self.affine = EdmLinear(emb, o * (2 if adaptive else 1))
        self.norm1, self.conv1 = EdmNorm(o), EdmConv(o, o)
        self.skip = EdmConv(i, o, kernel=1 if i != o else 0, up=up, down=down) if i != o or up or down else None
        if heads:
            self.norm2, self.qkv, self.proj = EdmNorm(o), EdmConv(o, o * 3, kernel=1), EdmConv(o, o, kernel=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        orig = x
        x = self.conv0(F.silu(self.norm0(x)))
        params = self.affine(emb).unsqueeze(2).unsqueeze(3).to(x.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(chunks=2, dim=1)
            x = F.silu(torch.addcmul(shift, self.norm1(x), scale + 1))
        else:
            x = F.silu(self.norm1(x.add_(params)))
        x = self.conv1(F.dropout(x, p=self.dropout, training=self.training))
        x = x.add_(self.skip(orig) if self.skip is not None else orig) * self.skip_scale
        if self.num_heads:
            q, k, v = (
                self.qkv(self.norm2(x))
                .reshape(x.shape[0] * self.num_heads, x.shape[1] // self.num_heads, 3, -1)
                .unbind(2)
            )
            a = torch.einsum("nqk,nck->ncq", AttentionOp.apply(q, k), v)
            x = self.proj(a.reshape(*x.shape)).add_(x) * self.skip_scale
        return x


class Edm(nn.Module):
    """SongUNet under EDM's preconditioning; `heads` of 64 channels with `adaptive`, as in DhariwalUNet."""

    def __init__(
        self, ch: int = 32, mult: Sequence[int] = (1, 2), blocks: int = 1, adaptive: bool = True, labels: int = 0
    ):
        super().__init__()
        emb, self.label_dim, self.sigma_data = 4 * ch, labels, 0.5
        self.register_buffer("freqs", torch.randn(ch // 2) * 16)
        self.map_label = EdmLinear(labels, ch) if labels else None
        self.map_layer0, self.map_layer1 = EdmLinear(ch, emb), EdmLinear(emb, emb)
        self.enc, o = nn.ModuleDict(), 3
        more: dict[str, Any] = {"adaptive": adaptive}
        for level, m in enumerate(mult):
            side = 16 >> level
            if level == 0:
                self.enc[f"{side}x{side}_conv"], o = EdmConv(3, ch), ch
            else:
                self.enc[f"{side}x{side}_down"] = EdmBlock(o, o, emb, down=True, **more)
            for n in range(blocks):
                self.enc[f"{side}x{side}_block{n}"] = EdmBlock(
                    o, ch * m, emb, heads=level and (2 if adaptive else 1), **more
                )
                o = ch * m
        skips = [block.out_channels for block in self.enc.values()]
        self.dec = nn.ModuleDict()
        for level, m in reversed(list(enumerate(mult))):
            side = 16 >> level
            if level == len(mult) - 1:
                self.dec[f"{side}x{side}_in0"] = EdmBlock(o, o, emb, heads=1, **more)
                self.dec[f"{side}x{side}_in1"] = EdmBlock(o, o, emb, **more)
            else:
                self.dec[f"{side}x{side}_up"] = EdmBlock(o, o, emb, up=True, **more)
            for n in range(blocks + 1):
                self.dec[f"{side}x{side}_block{n}"] = EdmBlock(o + skips.pop(), ch * m, emb, **more)
                o = ch * m
        self.out_norm, self.out_conv = EdmNorm(o), EdmConv(o, 3)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        return c_skip * x + c_out * self.net(c_in * x, (sigma.log() / 4).flatten(), class_labels)

    def net(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        emb = noise.ger((2 * np.pi * self.freqs).to(noise.dtype))
        emb = torch.cat([emb.cos(), emb.sin()], dim=1)
        emb = emb.reshape(emb.shape[0], 2, -1).flip(1).reshape(*emb.shape)
        if self.map_label is not None:
            emb = emb + self.map_label(labels * np.sqrt(self.map_label.in_features))
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        skips = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, EdmBlock) else block(x)
            skips.append(x)
        for block in self.dec.values():
            if x.shape[1] != block.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


def unit(x: Tensor, dim: Any = None, eps: float = 1e-4) -> Tensor:
    if dim is None:
        dim = list(range(1, x.ndim))
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    length = torch.add(eps, length, alpha=np.sqrt(length.numel() / x.numel()))
    return x / length.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    return a.lerp(b, t) / np.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, dim: int = 1, t: float = 0.5) -> Tensor:
    n, m = a.shape[dim], b.shape[dim]
    c = np.sqrt((n + m) / ((1 - t) ** 2 + t**2))
    return torch.cat([c / np.sqrt(n) * (1 - t) * a, c / np.sqrt(m) * t * b], dim=dim)


class MpConv(nn.Module):
    def __init__(self, i: int, o: int, kernel: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = o
        self.weight = nn.Parameter(torch.randn(o, i, *kernel))

    def forward(self, x: Tensor, gain: Any = 1) -> Tensor:
        w = self.weight.to(torch.float32)
        if self.training:
            with torch.no_grad():
                self.weight.copy_(unit(w))
        w = (unit(w) * (gain / np.sqrt(w[0].numel()))).to(x.dtype)
        return x @ w.t() if w.ndim == 2 else F.conv2d(x, w, padding=(w.shape[-1] // 2,))


class Edm2Block(nn.Module):
    def __init__(self, i: int, o: int, emb: int, flavor: str = "enc", resample: str = "keep", heads: int = 0) -> None:
        super().__init__()
        self.out_channels, self.flavor, self.resample, self.num_heads = o, flavor, resample, heads
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0, self.emb_linear = MpConv(o if flavor == "enc" else i, o, [3, 3]), MpConv(emb, o, [])
        self.conv_res1 = MpConv(o, o, [3, 3])
        self.conv_skip = MpConv(i, o, [1, 1]) if i != o else None
        self.attn_qkv = MpConv(o, o * 3, [1, 1]) if heads else None
        self.attn_proj = MpConv(o, o, [1, 1]) if heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        elif self.resample == "down":
            x = F.avg_pool2d(x, 2)
        if self.flavor == "enc":
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = unit(x, dim=1)
        y = self.conv_res0(mp_silu(x))
        c = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = self.conv_res1(mp_silu(y * c.unsqueeze(2).unsqueeze(3).to(y.dtype)))
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, t=0.3)
        if self.attn_qkv is not None and self.attn_proj is not None:
            y = self.attn_qkv(x)
            y = y.reshape(y.shape[0], self.num_heads, -1, 3, y.shape[2] * y.shape[3])
            q, k, v = unit(y, dim=2).unbind(3)
            w = torch.einsum("nhcq,nhck->nhqk", q, k / np.sqrt(q.shape[2])).softmax(dim=3)
            y = torch.einsum("nhqk,nhck->nhcq", w, v)
            x = mp_sum(x, self.attn_proj(y.reshape(*x.shape)), t=0.3)
        return x.clip_(-256, 256)


class Edm2(nn.Module):
    def __init__(self, ch: int = 32, mult: Sequence[int] = (1, 2), blocks: int = 1, labels: int = 0) -> None:
        super().__init__()
        emb = ch * max(mult)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.register_buffer("freqs", 2 * np.pi * torch.randn(ch))
        self.register_buffer("phases", 2 * np.pi * torch.rand(ch))
        self.emb_noise, self.emb_label = MpConv(ch, emb, []), MpConv(labels, emb, []) if labels else None
        self.enc, o = nn.ModuleDict(), 4
        for level, m in enumerate(mult):
            if level == 0:
                self.enc["conv"], o = MpConv(4, ch, [3, 3]), ch
            else:
                self.enc[f"{level}_down"] = Edm2Block(o, o, emb, resample="down")
            for n in range(blocks):
                self.enc[f"{level}_block{n}"], o = Edm2Block(o, ch * m, emb, heads=2 * level), ch * m
        skips = [block.out_channels for block in self.enc.values()]
        self.dec = nn.ModuleDict()
        for level, m in reversed(list(enumerate(mult))):
            if level == len(mult) - 1:
                self.dec[f"{level}_in0"] = Edm2Block(o, o, emb, flavor="dec", heads=2)
                self.dec[f"{level}_in1"] = Edm2Block(o, o, emb, flavor="dec")
            else:
                self.dec[f"{level}_up"] = Edm2Block(o, o, emb, flavor="dec", resample="up")
            for n in range(blocks + 1):
                self.dec[f"{level}_block{n}"], o = Edm2Block(o + skips.pop(), ch * m, emb, flavor="dec"), ch * m
        self.out_conv = MpConv(o, 4, [3, 3])

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.emb_noise((noise.ger(self.freqs) + self.phases).cos() * np.sqrt(2))
        if self.emb_label is not None and labels is not None:
            emb = mp_sum(emb, self.emb_label(labels * np.sqrt(labels.shape[1])))
        emb = mp_silu(emb)
        skips = []
        for name, block in self.enc.items():
            x = block(x) if "conv" in name else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(mp_cat(x, skips.pop()) if "block" in name else x, emb)
        return self.out_conv(x, gain=self.out_gain)
