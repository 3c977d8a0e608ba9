"""One-stage detectors as YOLO's code writes them: a list of layers with the numbers of those that each reads from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUMBER, BINS = 5, 8  # classes, and bins of a distribution over the sides of a box


class Conv(nn.Module):
    """Convolution, batch norm, SiLU."""

    default_act = nn.SiLU()

    def __init__(self, i: int, o: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=False)
        self.bn, self.act = nn.BatchNorm2d(o), self.default_act if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class RepConv(nn.Module):
    """Three branches that are one convolution after training (YOLOv6, v7)."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(i) if i == o else None
        self.conv1, self.conv2 = Conv(i, o, 3, act=False), Conv(i, o, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv1(x) + self.conv2(x) + (0 if self.bn is None else self.bn(x)))


class Bottleneck(nn.Module):
    def __init__(self, i: int, o: int, shortcut: bool = True, e: float = 0.5, rep: bool = False) -> None:
        super().__init__()
        hidden = int(o * e)
        self.cv1 = RepConv(i, hidden) if rep else Conv(i, hidden, 3)
        self.cv2, self.add = Conv(hidden, o, 3), shortcut and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    """YOLOv8: a split whose halves grow by one bottleneck after the other."""

    def __init__(self, i: int, o: int, n: int = 1, shortcut: bool = True, rep: bool = False) -> None:
        super().__init__()
        self.c = o // 2
        self.cv1, self.cv2 = Conv(i, 2 * self.c), Conv((2 + n) * self.c, o)
        self.m = nn.ModuleList(Bottleneck(self.c, self.c, shortcut, 1.0, rep) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C2fSplit(C2f):
    """The same with the split by `self.c`, as exporters have it."""

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).split((self.c, self.c), 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3(nn.Module):
    """YOLOv5: two ways, joined."""

    def __init__(self, i: int, o: int, n: int = 1, shortcut: bool = True, rep: bool = False) -> None:
        super().__init__()
        hidden = o // 2
        self.cv1, self.cv2, self.cv3 = Conv(i, hidden), Conv(i, hidden), Conv(2 * hidden, o)
        self.m = nn.Sequential(*(Bottleneck(hidden, hidden, shortcut, 1.0, rep) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class Elan(nn.Module):
    """YOLOv7: every second layer of a chain goes into the sum of all."""

    def __init__(self, i: int, o: int, n: int = 1, shortcut: bool = True, rep: bool = False) -> None:
        super().__init__()
        hidden = o // 2
        self.cv1, self.cv2 = Conv(i, hidden), Conv(i, hidden)
        self.chain = nn.ModuleList(
            nn.Sequential(Conv(hidden, hidden, 3), Conv(hidden, hidden, 3)) for _ in range(n + 1)
        )
        self.cv3 = Conv((n + 3) * hidden, o)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x), self.cv2(x)]
        for step in self.chain:
            y.append(step(y[-1]))
        return self.cv3(torch.cat(y[::-1], 1))


class Sppf(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.cv1, self.cv2, self.m = Conv(c, c // 2), Conv(c * 2, c), nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class PixelAttention(nn.Module):
    """The attention of YOLOv10 and v11: keys half as wide as values, and a position by a depthwise convolution."""

    def __init__(self, dim: int, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.key_dim = self.head_dim // 2
        self.scale = self.key_dim**-0.5
        self.qkv = Conv(dim, dim + self.key_dim * heads * 2, act=False)
        self.proj, self.pe = Conv(dim, dim, act=False), Conv(dim, dim, 3, g=dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attn = ((q.transpose(-2, -1) @ k) * self.scale).softmax(dim=-1)
        y = (v @ attn.transpose(-2, -1)).view(b, c, h, w) + self.pe(v.reshape(b, c, h, w))
        return x + self.proj(y)


def anchors(maps: list[Tensor], strides: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of cells and strides, made anew for the sizes of the maps."""
    points, steps = [], []
    for i, stride in enumerate(strides):
        _, _, h, w = maps[i].shape
        y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
        points.append(torch.stack((x, y), -1).view(-1, 2))
        steps.append(torch.full((h * w, 1), float(stride)))
    return torch.cat(points).transpose(0, 1), torch.cat(steps).transpose(0, 1)


class Dfl(nn.Module):
    """The mean of a distribution over bins, by a fixed convolution."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv, self.c1 = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False), bins
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.c1, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    """Without anchors: boxes as distributions, decoded when it does not train."""

    def __init__(self, widths: tuple[int, ...], depthwise: bool = False) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = NUMBER, BINS, NUMBER + 4 * BINS
        self.register_buffer("stride", torch.tensor([8.0, 16.0, 32.0][: len(widths)]))
        box, kind = max(16, widths[0] // 4), max(widths[0], NUMBER)
        self.cv2 = nn.ModuleList(
            nn.Sequential(Conv(w, box, 3), Conv(box, box, 3), nn.Conv2d(box, 4 * BINS, 1)) for w in widths
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(*self.tower(w, kind, depthwise), nn.Conv2d(kind, NUMBER, 1)) for w in widths
        )
        self.dfl = Dfl(BINS)

    @staticmethod
    def tower(i: int, o: int, depthwise: bool) -> list[nn.Module]:
        if depthwise:
            return [Conv(i, i, 3, g=i), Conv(i, o), Conv(o, o, 3, g=o), Conv(o, o)]
        return [Conv(i, o, 3), Conv(o, o, 3)]

    def forward(self, x: list[Tensor]) -> Any:
        maps = [torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1) for i in range(len(x))]
        if self.training:
            return maps
        flat = torch.cat([m.view(m.shape[0], self.no, -1) for m in maps], 2)
        box, kind = flat.split((self.reg_max * 4, self.nc), 1)
        points, steps = anchors(maps, self.stride)
        before, after = self.dfl(box).chunk(2, 1)
        low, high = points.unsqueeze(0) - before, points.unsqueeze(0) + after
        return torch.cat((torch.cat(((low + high) / 2, high - low), 1) * steps, kind.sigmoid()), 1), maps


class AnchorDetect(nn.Module):
    """With anchors: YOLOv3 to v7; grids are kept, and made anew where a map has another size."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.nc, self.no, self.na = NUMBER, NUMBER + 5, 3
        self.grid = [torch.zeros(1)] * len(widths)
        self.register_buffer("anchors", torch.rand(len(widths), 3, 2) * 4 + 1)
        self.register_buffer("stride", torch.tensor([8.0, 16.0, 32.0][: len(widths)]))
        self.m = nn.ModuleList(nn.Conv2d(w, self.no * self.na, 1) for w in widths)

    def forward(self, x: list[Tensor]) -> Any:
        z, out = [], []
        for i, m in enumerate(self.m):
            y = m(x[i])
            bs, _, ny, nx = y.shape
            y = y.view(bs, self.na, self.no, ny, nx).permute(0, 1, 3, 4, 2).contiguous()
            out.append(y)
            if not self.training:
                rows, columns = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
                grid = torch.stack((columns, rows), 2).view(1, 1, ny, nx, 2).float()
                xy, wh, rest = y.sigmoid().split((2, 2, self.nc + 1), 4)
                xy = (xy * 2 - 0.5 + grid) * self.stride[i]
                wh = (wh * 2) ** 2 * self.anchors[i].view(1, self.na, 1, 1, 2) * self.stride[i]
                z.append(torch.cat((xy, wh, rest), 4).view(bs, self.na * nx * ny, self.no))
        return out if self.training else (torch.cat(z, 1), out)


class DecoupledDetect(nn.Module):
    """YOLOX: classes and boxes apart, joined and flattened."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        hidden = widths[0]
        self.stems = nn.ModuleList(Conv(w, hidden) for w in widths)
        self.kinds = nn.ModuleList(nn.Sequential(Conv(hidden, hidden, 3), Conv(hidden, hidden, 3)) for _ in widths)
        self.boxes = nn.ModuleList(nn.Sequential(Conv(hidden, hidden, 3), Conv(hidden, hidden, 3)) for _ in widths)
        self.cls, self.reg, self.obj = (nn.ModuleList(nn.Conv2d(hidden, o, 1) for _ in widths) for o in (NUMBER, 4, 1))

    def forward(self, x: list[Tensor]) -> Tensor:
        out = []
        for k, (stem, m) in enumerate(zip(self.stems, x, strict=True)):
            y = stem(m)
            box = self.boxes[k](y)
            kind = self.cls[k](self.kinds[k](y))
            out.append(torch.cat([self.reg[k](box), self.obj[k](box).sigmoid(), kind.sigmoid()], 1))
        return torch.cat([o.flatten(start_dim=2) for o in out], dim=2).permute(0, 2, 1)


class Both(nn.Module):
    """YOLOv10: one head for many boxes an object while it trains, another for one box, on features cut off from it."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.many, self.one, self.most = Detect(widths), Detect(widths, depthwise=True), 10

    def forward(self, x: list[Tensor]) -> Any:
        one = self.one([m.detach() for m in x])
        if self.training:
            return {"one2many": self.many(x), "one2one": one}
        boxes, scores = one[0].transpose(-1, -2).split((4, NUMBER), -1)
        best, at = scores.amax(-1).topk(self.most, dim=-1)
        return torch.cat([boxes.gather(1, at.unsqueeze(-1).expand(-1, -1, 4)), best.unsqueeze(-1)], -1)


class Yolo(nn.Module):
    """A list of layers, each with the numbers of those it reads from, as parsed from a YAML file."""

    def __init__(
        self,
        block: type[nn.Module],
        head: Callable[[tuple[int, ...]], nn.Module],
        rep: bool = False,
        attend: bool = False,
    ) -> None:
        super().__init__()
        w = (16, 32, 64, 64)

        def stage(i: int, o: int, shortcut: bool = True) -> nn.Module:
            return block(i, o, 1, shortcut, rep)

        last: nn.Module = PixelAttention(w[3]) if attend else Sppf(w[3])
        rows: list[tuple[Any, nn.Module]] = [
            (-1, Conv(3, w[0], 3, 2)),
            (-1, Conv(w[0], w[1], 3, 2)),
            (-1, stage(w[1], w[1])),
            (-1, Conv(w[1], w[1], 3, 2)),
            (-1, stage(w[1], w[1])),
            (-1, Conv(w[1], w[2], 3, 2)),
            (-1, stage(w[2], w[2])),
            (-1, Conv(w[2], w[3], 3, 2)),
            (-1, last),
            (-1, nn.Upsample(None, 2, "nearest")),
            ([-1, 6], Joined()),
            (-1, stage(w[3] + w[2], w[2], False)),
            (-1, nn.Upsample(None, 2, "nearest")),
            ([-1, 4], Joined()),
            (-1, stage(w[2] + w[1], w[1], False)),
            (-1, Conv(w[1], w[1], 3, 2)),
            ([-1, 11], Joined()),
            (-1, stage(w[1] + w[2], w[2], False)),
            (-1, Conv(w[2], w[2], 3, 2)),
            ([-1, 8], Joined()),
            (-1, stage(w[2] + w[3], w[3], False)),
            ([14, 17, 20], head((w[1], w[2], w[3]))),
        ]
        self.model = nn.Sequential(*(m for _, m in rows))
        for i, (source, m) in enumerate(rows):
            m.f, m.i = source, i
        self.save = {4, 6, 8, 11, 14, 17, 20}

    def forward(self, x: Tensor) -> Any:
        y: list[Any] = []
        for m in self.model:
            if m.f != -1:
                x = [x if j == -1 else y[j] for j in m.f]
            x = m(x)
            y.append(x if m.i in self.save else None)
        return x


class Joined(nn.Module):
    def forward(self, x: list[Tensor]) -> Tensor:
        return torch.cat(x, 1)
