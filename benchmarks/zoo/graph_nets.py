"""Graph networks as torch_geometric's layers compute: messages along edges, gathered and scattered by index."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from case import Case
from torch import Tensor, nn

NODES, EDGES, FEATURES, CLASSES = 12, 40, 10, 4


def scattered(x: Tensor, index: Tensor, size: int, reduce: str = "sum") -> Tensor:
    """Rows of `x` summed, averaged or compared where `index` is the same."""
    index = index.view(-1, *[1] * (x.dim() - 1)).expand_as(x)
    out = x.new_zeros((size, *x.shape[1:]))
    if reduce == "sum":
        return out.scatter_add_(0, index, x)
    return out.scatter_reduce_(0, index, x, {"max": "amax", "min": "amin"}.get(reduce, reduce), include_self=False)


def softmax(x: Tensor, index: Tensor, size: int) -> Tensor:
    """Over the edges that end at the same node."""
    top = scattered(x.detach(), index, size, "max").index_select(0, index)
    weight = (x - top).exp()
    return weight / (scattered(weight, index, size).index_select(0, index) + 1e-16)


class Gcn(nn.Module):
    """Neighbours weighed by the degrees of both ends."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.lin, self.bias = nn.Linear(i, o, bias=False), nn.Parameter(torch.zeros(o))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        row, col = edge_index
        degree = torch.zeros(x.size(0)).index_add_(0, col, torch.ones(col.numel())) + 1
        scale = degree.pow(-0.5)
        weight = scale[row] * scale[col]
        x = self.lin(x)
        out = torch.zeros_like(x).index_add_(0, col, weight.unsqueeze(-1) * x[row])
        return out + x / degree.unsqueeze(-1) + self.bias


class Sage(nn.Module):
    def __init__(self, i: int, o: int, reduce: str = "mean") -> None:
        super().__init__()
        self.lin_l, self.lin_r, self.reduce = nn.Linear(i, o), nn.Linear(i, o, bias=False), reduce

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out = scattered(x.index_select(0, edge_index[0]), edge_index[1], x.size(0), self.reduce)
        return F.normalize(self.lin_l(out) + self.lin_r(x), p=2.0, dim=-1)


class Gin(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.nn, self.eps = (
            nn.Sequential(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU(), nn.Linear(o, o)),
            nn.Parameter(torch.zeros(1)),
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.nn(scattered(x[edge_index[0]], edge_index[1], x.size(0)) + (1 + self.eps) * x)


class Gat(nn.Module):
    """Attention by a learned vector a head; heads side by side."""

    def __init__(self, i: int, o: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.out_channels = heads, o // heads
        self.lin = nn.Linear(i, o, bias=False)
        self.att_src, self.att_dst = (nn.Parameter(torch.randn(1, heads, o // heads)) for _ in range(2))
        self.bias = nn.Parameter(torch.zeros(o))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h, c = self.heads, self.out_channels
        x = self.lin(x).view(-1, h, c)
        source, target = (x * self.att_src).sum(-1), (x * self.att_dst).sum(-1)
        alpha = F.leaky_relu(source[edge_index[0]] + target[edge_index[1]], 0.2)
        alpha = softmax(alpha, edge_index[1], x.size(0))
        out = scattered(x[edge_index[0]] * alpha.unsqueeze(-1), edge_index[1], x.size(0))
        return out.view(-1, h * c) + self.bias


class GatV2(nn.Module):
    def __init__(self, i: int, o: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.out_channels = heads, o // heads
        self.lin_l, self.lin_r = nn.Linear(i, o), nn.Linear(i, o)
        self.att = nn.Parameter(torch.randn(1, heads, o // heads))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h, c = self.heads, self.out_channels
        left, right = self.lin_l(x).view(-1, h, c), self.lin_r(x).view(-1, h, c)
        e = F.leaky_relu(left[edge_index[0]] + right[edge_index[1]], 0.2)
        alpha = softmax((e * self.att).sum(dim=-1), edge_index[1], x.size(0))
        out = scattered(left[edge_index[0]] * alpha.unsqueeze(-1), edge_index[1], x.size(0))
        return out.reshape(-1, h * c)


class Transformer(nn.Module):
    """Queries and keys along edges, and a gate between what came and what was."""

    def __init__(self, i: int, o: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.out_channels = heads, o // heads
        self.lin_query, self.lin_key, self.lin_value, self.lin_skip = (nn.Linear(i, o) for _ in range(4))
        self.lin_beta = nn.Linear(3 * o, 1, bias=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h, c = self.heads, self.out_channels
        q, k, v = (f(x).view(-1, h, c) for f in (self.lin_query, self.lin_key, self.lin_value))
        alpha = (q[edge_index[1]] * k[edge_index[0]]).sum(dim=-1) / math.sqrt(self.out_channels)
        alpha = softmax(alpha, edge_index[1], x.size(0))
        out = scattered(v[edge_index[0]] * alpha.view(-1, h, 1), edge_index[1], x.size(0)).view(-1, h * c)
        skip = self.lin_skip(x)
        beta = self.lin_beta(torch.cat([out, skip, out - skip], dim=-1)).sigmoid()
        return beta * skip + (1 - beta) * out


class Edge(nn.Module):
    """EdgeConv of DGCNN: what a node is and how its neighbour differs, the largest of all."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.nn = nn.Sequential(nn.Linear(2 * i, o), nn.ReLU(), nn.Linear(o, o))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        here, there = x[edge_index[1]], x[edge_index[0]]
        return scattered(self.nn(torch.cat([here, there - here], dim=-1)), edge_index[1], x.size(0), "max")


class Pna(nn.Module):
    """Four ways to aggregate, side by side."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.pre, self.post, self.lin = nn.Linear(2 * i, o), nn.Linear(i + 4 * o, o), nn.Linear(o, o)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        m, n = self.pre(torch.cat([x[edge_index[1]], x[edge_index[0]]], dim=-1)), x.size(0)
        mean = scattered(m, edge_index[1], n, "mean")
        spread = (scattered(m * m, edge_index[1], n, "mean") - mean * mean).clamp(min=1e-5).sqrt()
        found = [mean, scattered(m, edge_index[1], n, "max"), scattered(m, edge_index[1], n, "min"), spread]
        return self.lin(self.post(torch.cat([x, *found], dim=-1)))


class Gated(nn.Module):
    """GatedGCN: edges have features of their own, and both streams are residual."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.A, self.B, self.D, self.E = (nn.Linear(i, o) for _ in range(4))
        self.bn = nn.BatchNorm1d(o)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        sigma = torch.sigmoid(self.D(x)[edge_index[1]] + self.E(x)[edge_index[0]])
        top = scattered(sigma * self.B(x)[edge_index[0]], edge_index[1], x.size(0))
        return F.relu(self.bn(self.A(x) + top / (scattered(sigma, edge_index[1], x.size(0)) + 1e-6)))


class Recurrent(nn.Module):
    """GatedGraphConv: one message weight a step, a GRU cell as update."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.out_channels, self.weight, self.rnn = (
            o,
            nn.Parameter(torch.randn(2, o, o) / math.sqrt(o)),
            nn.GRUCell(o, o),
        )
        self.lin = nn.Linear(i, o)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.lin(x)
        for step in range(self.weight.size(0)):
            m = torch.matmul(x, self.weight[step])
            x = self.rnn(torch.zeros_like(m).index_add(0, edge_index[1], m[edge_index[0]]), x)
        return x


class GraphNet(nn.Module):
    """Three layers, pooled over the nodes of each graph."""

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int = 64, pool: str = "mean", join: bool = False):
        super().__init__()
        self.pool, self.join = pool, join
        self.layers = nn.ModuleList([layer(FEATURES, width), layer(width, width), layer(width, width)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.head = nn.Sequential(nn.Linear(3 * width if join else width, width), nn.ReLU(), nn.Linear(width, CLASSES))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor, graphs: int = 1) -> Tensor:
        kept = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = F.relu(norm(layer(x, edge_index)))
            x = h + x if kept else h
            kept.append(x)
        pooled = scattered(torch.cat(kept, dim=-1) if self.join else x, batch, graphs, self.pool)
        return self.head(pooled)


class SchNet(nn.Module):
    """Filters from distances, multiplied along edges."""

    def __init__(self, width: int = 64, rounds: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width, padding_idx=0)
        self.register_buffer("offset", torch.linspace(0, 5, 16))
        self.filters = nn.ModuleList(
            nn.Sequential(nn.Linear(16, width), nn.Softplus(), nn.Linear(width, width)) for _ in range(rounds)
        )
        self.lin1 = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(rounds))
        self.lin2 = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.Softplus(), nn.Linear(width, width)) for _ in range(rounds)
        )
        self.out = nn.Sequential(nn.Linear(width, width // 2), nn.Softplus(), nn.Linear(width // 2, 1))

    def forward(self, z: Tensor, pos: Tensor, edge_index: Tensor, batch: Tensor, graphs: int = 1) -> Tensor:
        row, col = edge_index
        length = (pos[row] - pos[col]).norm(dim=-1)
        spread = torch.exp(-2 * (length.view(-1, 1) - self.offset.view(1, -1)).pow(2))
        cut = 0.5 * (torch.cos(length * math.pi / 5) + 1)
        h = self.embedding(z)
        for filters, lin1, lin2 in zip(self.filters, self.lin1, self.lin2, strict=True):
            m = lin1(h)[row] * (filters(spread) * cut.view(-1, 1))
            h = h + lin2(torch.zeros_like(h).index_add_(0, col, m))
        return scattered(self.out(h), batch, graphs)


class Egnn(nn.Module):
    """Equivariant: positions move along differences, weighed by messages."""

    def __init__(self, width: int = 64, rounds: int = 2) -> None:
        super().__init__()
        self.embedding_in = nn.Linear(FEATURES, width)
        self.edge = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
            for _ in range(rounds)
        )
        self.node = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(rounds)
        )
        self.coord = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1, bias=False)) for _ in range(rounds)
        )
        self.embedding_out = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, pos: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        h = self.embedding_in(x)
        row, col = edge_index
        for edge, node, coord in zip(self.edge, self.node, self.coord, strict=True):
            apart = pos[row] - pos[col]
            m = edge(torch.cat([h[row], h[col], apart.pow(2).sum(1, keepdim=True)], dim=1))
            pos = pos + scattered(apart * coord(m), row, pos.size(0), "mean")
            h = h + node(torch.cat([h, scattered(m, row, h.size(0))], dim=1))
        return self.embedding_out(h), pos


class Dense(nn.Module):
    """DiffPool: graphs as dense matrices, nodes softly gathered into clusters."""

    def __init__(self, width: int = 64, clusters: int = 4) -> None:
        super().__init__()
        self.embed, self.assign = nn.Linear(FEATURES, width), nn.Linear(FEATURES, clusters)
        self.after, self.head = nn.Linear(width, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        z, s = F.relu(adj @ self.embed(x)), torch.softmax(adj @ self.assign(x), dim=-1)
        x, adj = s.transpose(1, 2) @ z, s.transpose(1, 2) @ adj @ s
        return self.head(F.relu(adj @ self.after(x)).mean(1))


def drawn(graphs: int) -> dict[str, Any]:
    """Graphs as one, their nodes numbered through."""
    ends = torch.randint(NODES, (2, EDGES * graphs)) + NODES * torch.arange(graphs).repeat_interleave(EDGES)
    return {"edge_index": ends, "batch": torch.arange(graphs).repeat_interleave(NODES), "graphs": graphs}


def featured(b: int) -> dict[str, Any]:
    return {"x": torch.randn(NODES * b, FEATURES)} | drawn(b)


def atoms(b: int) -> dict[str, Any]:
    return {"z": torch.randint(1, 20, (NODES * b,)), "pos": torch.randn(NODES * b, 3)} | drawn(b)


def placed(b: int) -> dict[str, Any]:
    both = featured(b) | {"pos": torch.randn(NODES * b, 3)}
    return {k: both[k] for k in ("x", "pos", "edge_index")}


def dense(b: int) -> dict[str, Any]:
    return {"x": torch.randn(b, NODES, FEATURES), "adj": (torch.rand(b, NODES, NODES) < 0.3).float()}


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Any]]]] = {
    "gcn": (lambda: GraphNet(Gcn), featured),
    "sage": (lambda: GraphNet(Sage), featured),
    "sage-max": (lambda: GraphNet(lambda i, o: Sage(i, o, "max"), pool="max"), featured),
    "gin-jumping": (lambda: GraphNet(Gin, pool="sum", join=True), featured),
    "gat": (lambda: GraphNet(Gat), featured),
    "gatv2": (lambda: GraphNet(GatV2), featured),
    "transformer": (lambda: GraphNet(Transformer), featured),
    "edge-conv": (lambda: GraphNet(Edge, pool="max"), featured),
    "pna": (lambda: GraphNet(Pna), featured),
    "gated": (lambda: GraphNet(Gated), featured),
    "recurrent": (lambda: GraphNet(Recurrent), featured),
    "schnet": (SchNet, atoms),
    "egnn": (Egnn, placed),
    "diffpool": (Dense, dense),
}


def cases() -> Iterator[Case]:
    for name, (make, given) in NETS.items():
        yield Case(f"graph/{name}", "graph nets", make, given)
