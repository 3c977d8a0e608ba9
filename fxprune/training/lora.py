"""LoRA factors that were trained for a dense model, cut for the pruned one.

    y = W x + B A x        W: (out, in)    A: (rank, in)    B: (out, rank)

loses the same inputs and outputs in `A` and `B` as in `W`, so that cutting and merging may change places.  Where the
cut put a factor into rows of `W` (an attention that keeps its temperature), `B` takes it, too.

Names are those of peft (`lora_A`, `lora_B`, with or without an adapter's name), diffusers (`lora.down`, `lora.up`) and
kohya (`lora_unet_..._to_q.lora_down`), under any prefix; whole weights and biases beside them (`modules_to_save`) are
cut as they are.  The magnitudes of a DoRA are those of `fxprune.training.dora`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from fxprune.errors import InputsError
from fxprune.graph.channels import ChannelGraph
from fxprune.graph.labels import Bools
from fxprune.graph.modules import tensor_names
from fxprune.rewriting.slicing import cut, folded, kept_positions
from fxprune.training.dora import Factors, Layer, magnitude

IN, OUT, NORM = "in", "out", "norm"
# what a name ends with -> the side of the layer that an axis of the tensor has, and which axis
FACTORS: tuple[tuple[str, str, int], ...] = (
    (r"lora_A(?P<adapter>\.\w+)?\.weight", IN, 1),
    (r"lora_B(?P<adapter>\.\w+)?\.(weight|bias)", OUT, 0),
    (r"lora_embedding_A(?P<adapter>\.\w+)?", IN, 1),
    (r"lora_embedding_B(?P<adapter>\.\w+)?", OUT, 0),
    (r"lora_magnitude_vector(?P<adapter>\.(?!weight$)\w+)?(\.weight)?|dora_scale", NORM, 0),
    (r"(lora|lora_linear_layer)\.down\.weight|lora_down\.weight", IN, 1),
    (r"(lora|lora_linear_layer)\.up\.weight|lora_up\.weight", OUT, 0),
    (r"(lora\.|lora_linear_layer\.)?alpha", "", 0),
)
OTHERS = re.compile(r"(text_encoder|lora_te)\w*[._]")  # parts of a pipeline beside the one that is pruned
KOHYA = re.compile(r"lora_\w+?_")


@dataclass(frozen=True)
class _Place:
    """The layer that a tensor belongs to, the side of it that the tensor's `axis` has ("": none), and which LoRA of it.

    `written` is how the key writes the layer's path.
    """

    module: str
    side: str
    axis: int
    written: str
    of: tuple[str, str] = ("", "")


class Cutter:
    """What cuts a state dict for a pruned model.

    Args:
        model, small: before and after.
        graph, keep: what stays; the graph is that without the blocks that go.
        whole: the graph with them.
        moved: name of a tensor in the model -> in the pruned one, where layers have moved up.
        scaling: of the factors of a DoRA whose state dict does not say it.
    """

    def __init__(
        self,
        model: nn.Module,
        small: nn.Module,
        graph: ChannelGraph,
        whole: ChannelGraph,
        keep: Bools,
        moved: Mapping[str, str],
        scaling: float | None = None,
    ) -> None:
        self.model, self.small, self.graph, self.whole, self.keep = model, small, graph, whole, keep
        self.moved, self.scaling = moved, scaling
        self.up = {old.rpartition(".")[0]: new.rpartition(".")[0] for old, new in moved.items()}
        self.factors: dict[tuple[str, str], Factors] = {}
        self.modules = {p: m for p, m in model.named_modules() if isinstance(getattr(m, "weight", None), Tensor)}
        self.flat = {path.replace(".", "_"): path for path in self.modules}
        self.names = tensor_names(model)

    def cut(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state dict, in the names of the pruned model; layers that go have none.

        Raises:
            InputsError: a name means nothing in this model, or a shape is not that of its layer.
        """
        for key, value in state.items():
            self._gather(key, value)
        return dict(self._cut(state))

    def _cut(self, state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, value in state.items():
            if isinstance(value, Mapping):
                raise InputsError(
                    f"{key!r:.120} holds a state dict of its own, of layers that this {type(self.model).__name__} has "
                    "not: load it into the model, and carry that, fxprune.carry_over(plan, model_with_it, model)"
                )
            if (name := self._whole_tensor(key)) is not None and isinstance(value, Tensor):
                if not self._is_gone(name):
                    owner = name.rpartition(".")[0]
                    yield self._renamed(key, owner, owner), self._plain(name, value, key)
            elif (place := self._place(key)) is not None:
                if not self._is_gone(self.names[f"{place.module}.weight".removeprefix(".")]):
                    made = self._factor(place, value, key) if isinstance(value, Tensor) else value
                    yield self._renamed(key, place.module, place.written), made
            elif not isinstance(value, Tensor):
                yield key, value
            elif self._is_token(key, value):
                yield key, self._token(value)
            elif OTHERS.match(key):
                yield key, value
            else:
                raise InputsError(
                    f"{key!r:.120} is no LoRA factor, and no tensor, of this {type(self.model).__name__}: leave it "
                    "out, or carry the model with it, fxprune.carry_over(plan, model_with_it, model)"
                )

    def _gather(self, key: str, value: Any) -> None:
        """Note the factors of a layer, which the norms of a DoRA are made of."""
        if (place := self._place(key)) is None or place.side == NORM:
            return
        held = self.factors.setdefault(place.of, Factors())
        if not place.side and (isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)):
            held.alpha = float(value)
        elif place.side and isinstance(value, Tensor) and value.dim() > 1:
            setattr(held, "down" if place.side == IN else "up", value)

    # ---- names ----------------------------------------------------------------------------------------------------

    def _whole_tensor(self, key: str) -> str | None:
        """The tensor of the model that a name ends with."""
        plain = key.replace(".base_layer.", ".").replace(".modules_to_save.", ".")
        return next((self.names[tail] for tail in _tails(plain, ".") if tail in self.names), None)

    def _place(self, key: str) -> _Place | None:
        for pattern, side, axis in FACTORS:
            if (found := re.fullmatch(rf"(.+)\.({pattern})", key)) is not None:
                written = next((t for t in _tails(found[1], ".") if t in self.modules), None)
                if written is None and KOHYA.match(found[1]):
                    written = next((t for t in _tails(found[1], "_") if t in self.flat), None)
                of = (found[1], found.groupdict().get("adapter") or "")
                path = written if written in self.modules else self.flat.get(written or "")
                return None if written is None or path is None else _Place(path, side, axis, written, of)
        return None

    def _renamed(self, key: str, path: str, written: str) -> str:
        """A key that writes the path of a layer, for where that layer is in the pruned model."""
        if (new := self.up.get(path, path)) == path:
            return key
        at = key.rindex(written)
        return key[:at] + (new if written == path else new.replace(".", "_")) + key[at + len(written) :]

    def _is_gone(self, name: str) -> bool:
        return name in self.whole.tensors and name not in self.graph.tensors

    # ---- tensors --------------------------------------------------------------------------------------------------

    def _kept(self, name: str) -> list[Tensor | None]:
        return kept_positions(self.graph, name, self.keep) if name in self.graph.tensors else []

    def _plain(self, name: str, value: Tensor, key: str) -> Tensor:
        self._require(value.shape == self._shape(name), key, value, self._shape(name))
        return self._folded(name, cut(value, dict(enumerate(self._kept(name)))))

    def _folded(self, name: str, value: Tensor) -> Tensor:
        return folded(self.small, self.moved.get(name, name), value)

    def _factor(self, place: _Place, value: Tensor, key: str) -> Tensor:
        if not place.side:
            return value
        name = self.names[f"{place.module}.weight".removeprefix(".")]
        if place.side == NORM:
            return self._magnitude(place, name, value, key)
        axis = self._weight_axis(place)
        shape = self._shape(name)
        fits = value.dim() > place.axis and value.shape[place.axis] == shape[axis]
        self._require(fits, key, value, shape)
        kept = self._kept(name)
        value = cut(value, {place.axis: kept[axis] if kept else None})
        if place.side == OUT and axis == 0:
            return self._folded(name, value)
        return value

    def _magnitude(self, place: _Place, name: str, value: Tensor, key: str) -> Tensor:
        kept = self._kept(name) or [None, None]
        out, inner = (kept[self._weight_axis(replace(place, side=side))] for side in (OUT, IN))
        layer = Layer(key, self.modules[place.module], self.factors.get(place.of, Factors()), out, inner)
        made = magnitude(value, layer, self.scaling)
        return self._folded(name, made.flatten()).view(made.shape)

    def _weight_axis(self, place: _Place) -> int:
        """The axis of a layer's weight that is a side of it."""
        module = self.modules[place.module]
        transposed = isinstance(module, nn.Embedding) or getattr(module, "nf", None) == module.weight.shape[-1]
        if not transposed and not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise InputsError(
                f"{place.module} is a {type(module).__name__}, nobody told which axes of its weight are its inputs: "
                "merge the LoRA into the model, and prune that"
            )
        return (0 if place.side == OUT else 1) if not transposed else (1 if place.side == OUT else 0)

    def _shape(self, name: str) -> tuple[int, ...]:
        owner, _, leaf = name.rpartition(".")
        return tuple(getattr(self.model.get_submodule(owner), leaf).shape)

    def _require(self, fits: bool, key: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if not fits:
            raise InputsError(
                f"{key!r:.120} is of shape {tuple(value.shape)}, which does not fit the layer's weight {shape}: it was "
                "not trained for this model as it was before it was pruned"
            )

    # ---- textual inversions -----------------------------------------------------------------------------------------

    def _embedding(self) -> str | None:
        found = getattr(self.model, "get_input_embeddings", None)
        try:
            table = found() if found is not None else None
        except NotImplementedError:
            return None
        weight = getattr(table, "weight", None)
        return next((n for n, p in self.model.named_parameters() if p is weight), None)

    def _is_token(self, key: str, value: Tensor) -> bool:
        """Whether an entry is the embedding of new words: of the width of the model's table."""
        name = self._embedding()
        return "." not in key and name is not None and value.dim() in (1, 2) and value.shape[-1] == self._shape(name)[1]

    def _token(self, value: Tensor) -> Tensor:
        name = self._embedding()
        assert name is not None
        kept = self._kept(name)
        return cut(value, {value.dim() - 1: kept[1] if kept else None})


def _tails(name: str, separator: str) -> Iterator[str]:
    """A name, and what is left of it without the first part, and so on."""
    parts = name.split(separator)
    return (separator.join(parts[i:]) for i in range(len(parts)))
