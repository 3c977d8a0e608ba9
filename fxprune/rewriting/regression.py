"""Weights corrected one after the other, on what the part that is pruned already gives them.

For a layer y = W x + b of the model, x' what the same layer reads in the small model, and K the columns that stay:

    min over W', b'  Σ ‖W x + b − W' x' − b'‖² + λ ‖W' − W_K‖²      λ = damping · mean square of x'

    (W' b') = ((W b) E[x̂ x̂'ᵀ] + λ (W_K b)) (E[x̂' x̂'ᵀ] + λ)⁻¹      with x̂ = (x, 1), and λ = 0 for the 1

so that every layer makes up for its own lost inputs and for what the layers before it could not.  A convolution's
columns are all taps of its kernel.  Where y is added to another tensor s, as at the end of a residual branch, their sum
is what counts:

    min over W', b'  Σ ‖s + W x + b − s' − W' x' − b'‖² + λ ‖W' − W_K‖²

which adds E[x̂' (s − s')ᵀ] to the first factor: what went wrong on the stream before is made up for, too.  Layers go
in the order in which they run (`fxprune.rewriting.correction`).

Source: Frantar and Alistarh, Optimal Brain Compression, NeurIPS 2022; He et al., Channel Pruning for Accelerating Very
Deep Neural Networks, ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fxprune.errors import CriterionError
from fxprune.rewriting.slicing import kept_positions
from fxprune.scoring import distributed as ranks
from fxprune.scoring.context import Context
from fxprune.scoring.observation import Call

LARGEST = 4608  # columns whose moments are held; of wider convolutions taps are corrected each for itself
ROWS = 4096  # samples and places of a call that are looked at, the same in both models
DRIFT = 1e-10  # share of an input's square below which it is what it was


@dataclass(frozen=True)
class Reader:
    """A weight that is corrected: the axis that it reads, and its bias ("" without)."""

    weight: str
    axis: int
    groups: int
    bias: str
    wide: bool  # the columns are all taps
    whole: bool  # the columns make an output by themselves


@dataclass
class Found:
    """A reader that was met, how often it ran, and the number of the input that it reads; none if it stays as it is."""

    reader: Reader | None
    source: int
    calls: int = 0
    sums: int = 0  # calls whose output is added to something
    aligned: bool = True  # whether what it reads is looked at by samples and places of its output

    @property
    def joins(self) -> bool:
        """Whether each output is a part of a sum."""
        r = self.reader
        return r is not None and r.whole and r.groups == 1 and self.sums == self.calls


class Enough(Exception):
    """Ends a run in which all that is wanted has been seen."""


@dataclass
class Sums:
    """Moments of one reader over the data."""

    own: Tensor | float = 0.0  # x̂' x̂'ᵀ, (groups, columns, columns)
    cross: Tensor | float = 0.0  # x̂ x̂'ᵀ
    lack: Tensor | float = 0.0  # x̂' (s − s')ᵀ
    drift: Tensor | float = 0.0
    size: Tensor | float = 0.0
    rows: int = 0  # samples and places, of this process


@dataclass
class Pass:
    """Inputs of some readers in one run, in order."""

    package: dict[str, Found]
    roots: Mapping[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    beside: dict[str, list[Tensor]] = field(default_factory=dict)

    def __call__(self, call: Call) -> None:
        """Keep what a call reads: (groups, columns, samples and places)."""
        found = self.package.get(call.weight)
        reader = None if found is None else found.reader
        if reader is None or call.inputs is None:
            return
        self.inputs.setdefault(call.weight, []).append(values(reader, call, self.roots.get(call.weight)))
        self._ends()

    def added(self, call: Call, other: Tensor) -> None:
        """Keep what a call's output is added to: (1, outputs, samples and places)."""
        found = self.package.get(call.weight)
        if found is None or not found.joins:
            return
        self.beside.setdefault(call.weight, []).append(beside(other, self.roots.get(call.weight)))
        self._ends()

    def _ends(self) -> None:
        for name, found in self.package.items():
            sums = found.calls if found.joins else 0
            if len(self.inputs.get(name, ())) < found.calls or len(self.beside.get(name, ())) < sums:
                return
        raise Enough


def values(reader: Reader, call: Call, root: Tensor | None = None) -> Tensor:
    """What a call reads, with ones for a bias, times √w: (groups, columns, samples and places).

    Args:
        root: √w of the samples and places that are looked at; None: all count alike.
    """
    assert call.inputs is not None
    x = _rows(call.unfolded() if reader.wide and call.unfolded is not None else call.inputs, call.groups)
    return _times(torch.cat([x, torch.ones_like(x[:, :1])], 1) if reader.bias else x, root)


def beside(other: Tensor, root: Tensor | None = None) -> Tensor:
    """What an output is added to, times √w: (1, outputs, samples and places)."""
    return _times(_rows(other.flatten(2) if other.dim() > 2 else other[..., None], 1), root)


def _rows(x: Tensor, groups: int) -> Tensor:
    """(n, channels, places) as (groups, channels, samples and places), no more than ROWS of these."""
    return looked_at(x.float().reshape(len(x), groups, -1, x.shape[-1]).permute(1, 2, 0, 3).flatten(2), 2)


def _times(x: Tensor, root: Tensor | None) -> Tensor:
    """Times √w, where that is known."""
    return x if root is None or len(root) != x.shape[2] else x * root


def looked_at(x: Tensor, axis: int) -> Tensor:
    """ROWS samples and places at most: more tell little more."""
    if x.shape[axis] <= ROWS:
        return x
    some = torch.randperm(x.shape[axis], generator=torch.Generator().manual_seed(0))[:ROWS]
    return x.index_select(axis, some.to(x.device))


def readers(ctx: Context, folded: set[str]) -> dict[str, Found]:
    """Every weight that reads one axis alone, in the order in which they run."""
    every: dict[str, Found] = {}
    last: list[Tensor] = []  # alive, so that no other tensor has its place

    def visit(call: Call) -> None:
        same = bool(last) and call.inputs is not None and _is(last[0], call.inputs)
        source = max((f.source for f in every.values()), default=0) + (not same)
        last[:] = [] if call.inputs is None else [call.inputs]
        reader = _reader(ctx, call) if not {call.weight, call.bias} & folded else None
        held = every.setdefault(call.weight, Found(reader, source))
        held.calls += 1
        held.aligned = held.aligned and _aligned(reader, call)
        held.reader = held.reader if held.reader == reader else None

    def added(call: Call, other: Tensor) -> None:
        every[call.weight].sums += 1

    first = next(iter(ctx.batches))
    replace(ctx, data=[first], memo={}, progress=False).observe(visit, "", added)
    found = {name: f for name, f in every.items() if f.reader is not None}
    biases = [f.reader.bias for f in found.values() if f.reader is not None]
    for f in found.values():
        if f.reader is not None and f.reader.bias and biases.count(f.reader.bias) > 1:
            f.reader = replace(f.reader, bias="")
    return found


def _reader(ctx: Context, call: Call) -> Reader | None:
    weight = ctx.tensors[call.weight]
    if call.inputs is None or (call.reads == 0 and call.groups > 1):
        return None
    wide = call.unfolded is not None and weight[0].numel() <= LARGEST
    whole = wide or (call.unfolded is None and call.reads == 1 and weight.dim() == 2)
    return Reader(call.weight, call.reads, call.groups, call.bias if whole else "", wide, whole)


def _aligned(reader: Reader | None, call: Call) -> bool:
    """Unfolded inputs are; a strided or transposed convolution's others are not."""
    if reader is None or call.inputs is None or reader.wide:
        return reader is not None
    return len(call.inputs) * call.inputs.shape[-1] * call.output.shape[1] == call.output.numel()


def _is(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def packages(found: dict[str, Found], together: int) -> Iterator[dict[str, Found]]:
    """The readers of so many inputs at a time."""
    sources = sorted({f.source for f in found.values()})
    for start in range(0, len(sources), together):
        mine = sources[start : start + together]
        yield {name: f for name, f in found.items() if f.source in mine}


def moments(
    ctx: Context,
    small: nn.Module,
    package: dict[str, Found],
    keep: npt.NDArray[np.bool_],
    roots: Sequence[Mapping[str, Tensor]] = (),
) -> Iterator[tuple[str, Sums]]:
    """Both models over all batches; one weight's moments after the other.

    Only the first input of a package is what the corrected part gives: behind it is what a layer of the package has not
    been corrected for yet, and what that will make good again must not be made good twice.  There the dense model's
    input stands for the small one's.
    """
    every = {name: Sums() for name in package}
    first = min(f.source for f in package.values())
    for number, batch in enumerate(ctx.track(f"correction of {next(iter(package))}, ...")):
        one = {"data": [batch], "seed": ctx.seed + number, "memo": {}, "progress": False}
        own = roots[number] if roots else {}
        before, after = Pass(package, own), Pass(package, own)
        for seen, model in ((before, ctx.model), (after, small)):
            try:
                replace(ctx, **one, model=model).observe(seen, "", seen.added)  # type: ignore[arg-type]
            except Enough as ended:
                ended.__traceback__ = ended.__context__ = None  # whose frames would hold the batch
        for name, found in package.items():
            kept = kept_positions(ctx.graph, name, keep)
            for x, y in zip(before.inputs.get(name, ()), after.inputs.get(name, ()), strict=False):
                add(every[name], x, y if found.source == first else narrowed(x, y, found, ctx, kept))
            if found.source != first:
                continue
            outputs = kept[0]
            for y, s, t in zip(
                *(seen.get(name, ()) for seen in (after.inputs, before.beside, after.beside)), strict=False
            ):
                add_lack(every[name], y, s if outputs is None else s[:, outputs.to(s.device)], t)
    for name, found in package.items():
        if found.reader is not None and isinstance(every[name].own, Tensor):
            ranks.add_up(v for v in vars(every[name]).values() if isinstance(v, Tensor))
            yield name, every[name]


def narrowed(x: Tensor, y: Tensor, found: Found, ctx: Context, kept: list[Tensor | None]) -> Tensor:
    """Of what the dense layer reads, what the small one would."""
    reader = found.reader
    if reader is None or x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        return y
    ones = bool(reader.bias)
    positions = _positions(x.shape[1] - ones, ctx.graph.shapes[reader.weight][reader.axis], kept[reader.axis])
    every = torch.cat([positions, torch.tensor([x.shape[1] - 1])]) if ones else positions
    return x[:, every.to(x.device)]


def add(sums: Sums, x: Tensor, y: Tensor) -> None:
    """Add to the moments what the dense layer and the small one read."""
    if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        return  # groups have gone, or places: nothing to compare
    sums.own = sums.own + y @ y.mT
    sums.cross = sums.cross + x @ y.mT
    sums.size = sums.size + x.square().sum()
    sums.rows += x.shape[2]
    same = x.shape == y.shape
    sums.drift = sums.drift + ((x - y).square().sum() if same else x.square().sum())


def add_lack(sums: Sums, y: Tensor, s: Tensor, t: Tensor) -> None:
    """Add to the moments what a stream lacks."""
    if s.shape == t.shape and s.shape[::2] == y.shape[::2]:
        sums.lack = sums.lack + y @ (s - t).mT
        off = (s - t).square().sum() / s.square().sum().clamp_min(torch.finfo(s.dtype).tiny)
        sums.drift = sums.drift + off * y.square().sum()


def solved(ctx: Context, reader: Reader, sums: Sums, kept: list[Tensor | None], damping: float) -> dict[str, Tensor]:
    """The new weight and bias, of full size."""
    weight = ctx.tensors[reader.weight].detach()
    own, cross = torch.as_tensor(sums.own).double(), torch.as_tensor(sums.cross).double()
    if not bool(torch.isfinite(cross).all()):
        raise CriterionError(
            f"{ctx.who}: the input of {reader.weight} holds NaN or infinite values; check weights and data"
        )
    if kept[reader.axis] is None and float(sums.drift) <= DRIFT * float(sums.size):
        return {}
    columns = _columns(weight, reader)
    positions = _positions(columns.shape[1], weight.shape[reader.axis], kept[reader.axis]).to(weight.device)
    bias = ctx.tensors[reader.bias].detach().double().reshape(reader.groups, 1, -1) if reader.bias else None
    whole = columns if bias is None else torch.cat([columns, bias], 1)
    stays = columns[:, positions] if bias is None else torch.cat([columns[:, positions], bias], 1)
    n = len(positions)
    square = own.diagonal(dim1=1, dim2=2)[:, :n].mean(1).clamp_min(torch.finfo(own.dtype).tiny)
    ridge = torch.zeros_like(own)
    ridge.diagonal(dim1=1, dim2=2)[:, :n] = (damping * square)[:, None]
    ridge.diagonal(dim1=1, dim2=2)[:, n:] = 1e-12 * square[:, None]  # a mean is always known
    wanted = cross.mT @ whole + ridge @ stays
    if isinstance(sums.lack, Tensor):
        outputs = slice(None) if kept[0] is None else kept[0].to(weight.device)
        wanted[:, :, outputs] += sums.lack.double()
    made = torch.linalg.solve(own + ridge, wanted)
    columns[:, positions] = made[:, :n]
    out = {reader.weight: _weight(columns, weight, reader)}
    if bias is not None:
        out[reader.bias] = made[:, n].reshape(-1).to(ctx.tensors[reader.bias].dtype)
    return out


def _positions(columns: int, channels: int, kept: Tensor | None) -> Tensor:
    """Columns of the channels that stay, taps and all."""
    every = torch.arange(columns).reshape(channels, -1)
    return (every if kept is None else every[kept]).flatten()


def put(tensor: Tensor, full: Tensor, kept: Iterable[Tensor | None]) -> None:
    """Write what stays of new values into the small model's tensor."""
    for d, positions in enumerate(kept):
        if positions is not None:
            full = full.index_select(d, positions.to(full.device))
    with torch.no_grad():
        tensor.copy_(full)


def _columns(weight: Tensor, reader: Reader) -> Tensor:
    """(groups, columns, what each is multiplied to) of a weight, a copy in double precision."""
    wide = weight.double()
    if reader.wide:
        return wide.reshape(reader.groups, -1, wide[0].numel()).transpose(1, 2).clone()
    if reader.groups == 1:
        return wide.movedim(reader.axis, 0).flatten(1)[None].clone()
    return wide.reshape(reader.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(2).clone()


def _weight(columns: Tensor, weight: Tensor, reader: Reader) -> Tensor:
    """The weight that these are the columns of."""
    if reader.wide:
        return columns.transpose(1, 2).reshape(weight.shape).to(weight.dtype)
    if reader.groups == 1:
        rest = [n for d, n in enumerate(weight.shape) if d != reader.axis]
        return columns[0].reshape(-1, *rest).movedim(0, reader.axis).to(weight.dtype)
    taps = columns.reshape(*columns.shape[:2], -1, *weight.shape[2:])
    return taps.transpose(1, 2).flatten(0, 1).to(weight.dtype)
