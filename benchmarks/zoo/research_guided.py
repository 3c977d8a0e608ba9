"""As guided-diffusion and LDM write their UNet: sequences that hand the time on, scale and shift, recomputed blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from research_ddim import Nearest, norm, waves
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class TimedBlock(nn.Module):
    def __init__(self, i: int, emb: int, o: int, shift: bool, up: bool = False, down: bool = False, save: bool = False):
        super().__init__()
        self.channels, self.out_channels, self.use_scale_shift_norm, self.save = i, o, shift, save
        self.in_layers = nn.Sequential(norm(i), nn.SiLU(), nn.Conv2d(i, o, 3, padding=1))
        self.resample: Callable[[Tensor], Tensor] | None = None
        self.updown = up or down
        self.up, self.down = up, down
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * o if shift else o))
        self.out_layers = nn.Sequential(norm(o), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(o, o, 3, padding=1))
        self.skip_connection = nn.Identity() if i == o else nn.Conv2d(i, o, 1)

    def sampled(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.avg_pool2d(x, 2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return checkpoint(self._forward, x, emb, use_reentrant=False) if self.save else self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.updown:
            rest, conv = self.in_layers[:-1], self.in_layers[-1]
            h = conv(self.sampled(rest(x)))
            x = self.sampled(x)
        else:
            h = self.in_layers(x)
        out = self.emb_layers(emb).type(h.dtype)
        while len(out.shape) < len(h.shape):
            out = out[..., None]
        if self.use_scale_shift_norm:
            first, rest = self.out_layers[0], self.out_layers[1:]
            scale, shift = torch.chunk(out, 2, dim=1)
            h = rest(first(h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + out)
        return self.skip_connection(x) + h


class QkvAttention(nn.Module):
    """`legacy`: heads are split off before q, k and v."""

    def __init__(self, heads: int, legacy: bool) -> None:
        super().__init__()
        self.n_heads, self.legacy = heads, legacy

    def forward(self, qkv: Tensor) -> Tensor:
        bs, width, length = qkv.shape
        assert width % (3 * self.n_heads) == 0
        ch = width // (3 * self.n_heads)
        scale = 1 / math.sqrt(math.sqrt(ch))
        if self.legacy:
            q, k, v = qkv.reshape(bs * self.n_heads, ch * 3, length).split(ch, dim=1)
        else:
            q, k, v = (x.reshape(bs * self.n_heads, ch, length) for x in qkv.chunk(3, dim=1))
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
        return torch.einsum("bts,bcs->bct", weight, v).reshape(bs, -1, length)


class FlatAttention(nn.Module):
    def __init__(self, channels: int, heads: int, legacy: bool) -> None:
        super().__init__()
        self.channels = channels
        self.norm, self.qkv = norm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.attention, self.proj_out = QkvAttention(heads, legacy), nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        return (x + self.proj_out(self.attention(self.qkv(self.norm(x))))).reshape(b, c, *spatial)


class Timed(nn.Sequential):
    """Layers of which some take the time or a text, too."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:
        for layer in self:
            if isinstance(layer, TimedBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class CrossAttention(nn.Module):
    """As in LDM: heads are folded into the batch."""

    def __init__(self, query: int, context: int | None = None, heads: int = 4, width: int = 16) -> None:
        super().__init__()
        inner = heads * width
        self.scale, self.heads = width**-0.5, heads
        self.to_q = nn.Linear(query, inner, bias=False)
        self.to_k, self.to_v = (nn.Linear(context or query, inner, bias=False) for _ in range(2))
        self.to_out = nn.Sequential(nn.Linear(inner, query), nn.Dropout(0.1))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h, context = self.heads, x if context is None else context

        def apart(t: Tensor) -> Tensor:
            b, n, hd = t.shape
            return t.reshape(b, n, h, hd // h).permute(0, 2, 1, 3).reshape(b * h, n, hd // h)

        q, k, v = apart(self.to_q(x)), apart(self.to_k(context)), apart(self.to_v(context))
        out = torch.einsum("bij,bjd->bid", (torch.einsum("bid,bjd->bij", q, k) * self.scale).softmax(dim=-1), v)
        bh, n, d = out.shape
        out = out.reshape(bh // h, h, n, d).permute(0, 2, 1, 3).reshape(bh // h, n, h * d)
        return self.to_out(out)


class Geglu(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.proj = nn.Linear(i, o * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class SpatialTransformer(nn.Module):
    def __init__(self, channels: int, heads: int, width: int, context: int) -> None:
        super().__init__()
        self.norm, inner = norm(channels), heads * width
        self.proj_in, self.proj_out = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.attn1, self.attn2 = CrossAttention(inner, None, heads, width), CrossAttention(inner, context, heads, width)
        self.ff = nn.Sequential(Geglu(inner, 2 * inner), nn.Dropout(0.1), nn.Linear(2 * inner, inner))
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(inner) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        b, _, h, w = x.shape
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        y = self.attn1(self.norm1(y)) + y
        y = self.attn2(self.norm2(y), context=context) + y
        y = self.ff(self.norm3(y)) + y
        return self.proj_out(y.transpose(1, 2).reshape(b, -1, h, w)) + x


class GuidedUNet(nn.Module):
    """The UNet of guided-diffusion, and with `context` that of LDM."""

    def __init__(
        self,
        ch: int = 32,
        mult: Sequence[int] = (1, 2),
        shift: bool = True,
        resblock_updown: bool = True,
        legacy: bool = True,
        classes: int = 0,
        context: int = 0,
        save: bool = False,
    ) -> None:
        super().__init__()
        emb, self.model_channels = 4 * ch, ch
        self.time_embed = nn.Sequential(nn.Linear(ch, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb = nn.Embedding(classes, emb) if classes else None

        def block(i: int, o: int, **more: bool) -> TimedBlock:
            return TimedBlock(i, emb, o, shift, save=save, **more)

        def attention(o: int) -> nn.Module:
            return SpatialTransformer(o, 4, o // 4, context) if context else FlatAttention(o, 4, legacy)

        self.input_blocks, o, widths = nn.ModuleList([Timed(nn.Conv2d(4, ch, 3, padding=1))]), ch, [ch]
        for level, m in enumerate(mult):
            self.input_blocks.append(Timed(block(o, ch * m), *([attention(ch * m)] if level else [])))
            o = ch * m
            widths.append(o)
            if level + 1 < len(mult):
                down = block(o, o, down=True) if resblock_updown else nn.Conv2d(o, o, 3, stride=2, padding=1)
                self.input_blocks.append(Timed(down))
                widths.append(o)
        self.middle_block = Timed(block(o, o), attention(o), block(o, o))
        self.output_blocks = nn.ModuleList()
        for level, m in reversed(list(enumerate(mult))):
            for n in range(2):
                layers: list[nn.Module] = [block(o + widths.pop(), ch * m)]
                o = ch * m
                layers += [attention(o)] if level else []
                if level and n == 1:
                    layers.append(block(o, o, up=True) if resblock_updown else Nearest(o))
                self.output_blocks.append(Timed(*layers))
        self.out = nn.Sequential(norm(o), nn.SiLU(), nn.Conv2d(o, 4, 3, padding=1))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        hs, emb = [], self.time_embed(waves(timesteps, self.model_channels))
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        h = x
        for module in self.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb, context)
        return self.out(h)
