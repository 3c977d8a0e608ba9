"""transformers: token ids, images or features, as the class's forward and config ask for them."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.adapter import Adapter, Constructor, Files
from fxprune.adapters.tensors import draw, place
from fxprune.adapters.wording import text_batches
from fxprune.errors import InputsError, SaveError
from fxprune.graph.modules import ExampleInputs, comes_from
from fxprune.saving.files import read_object
from fxprune.saving.stock import CONFIG, read_as
from fxprune.scoring.context import Loss
from fxprune.sources.pictures import HALF, Pictures, images_in, labels_of, loader
from fxprune.stock.oracle import silenced

TOKENS = 16
FIRST_TOKEN = 5  # below lie the special tokens of most vocabularies
SAMPLES = 16_000  # one second of sound
# forward's argument -> the sub-config that a model which also takes this modality has
SECOND_INPUTS = {"input_ids": "text_config", "pixel_values": "vision_config", "input_features": "audio_config"}


LABELS = ("id2label", "label2id")  # no sizes, and there may be thousands
COUNT, BY_LAYER = "num_hidden_layers", "per_layer_config"
CACHES = ("cache", "past_key_values", "cache_params", "mems")


class TransformersAdapter(Adapter):
    """Models of Hugging Face transformers.

    Example inputs are the model's `main_input_name`, a second modality where the config has one (CLIP), decoder ids for
    encoder-decoder models, and `use_cache=False`.  The loss is the library's own: `model(**batch).loss`, so batches are
    dicts with labels.
    """

    def recognises(self, given: object) -> bool:
        """A `PreTrainedModel`."""
        if not (isinstance(given, nn.Module) and comes_from(given, "transformers")):
            return False
        from transformers import PreTrainedModel

        return isinstance(given, PreTrainedModel)

    def example_inputs(self, model: nn.Module) -> ExampleInputs:
        """Keyword arguments for a batch of one.

        Raises:
            InputsError: forward requires an argument that is not known here.
        """
        takes = inspect.signature(model.forward).parameters
        wanted = [str(getattr(model, "main_input_name", "input_ids"))]
        wanted += [name for name, part in SECOND_INPUTS.items() if _has_part(model, part) and name not in wanted]
        wanted += ["decoder_input_ids"] * ("decoder_input_ids" in takes)
        inputs = {name: _make(model, name) for name in wanted if name in takes}
        required = [n for n, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
        unknown = [n for n in required if n not in inputs] or [n for n, v in inputs.items() if v is None]
        if unknown or not inputs:
            name = unknown[0] if unknown else wanted[0]
            raise InputsError(
                f"{type(model).__name__}.forward takes {name!r}, unknown to fxprune: pass example_inputs="
            )
        return {**inputs, **({"use_cache": False} if "use_cache" in takes else {})}

    def released(self, model: nn.Module) -> tuple[str | type, ...]:
        """The caches of decoders."""
        from transformers.cache_utils import Cache

        return (Cache, *CACHES)

    def loss_of(self, given: Any, seed: int = 0) -> Loss:
        """`model(**batch).loss`."""
        return _own_loss

    def batches(self, given: Any, files: Files) -> tuple[Iterable[Any], Loss | None]:
        """Text for a language model; images in sub-folders, one a class, for a classifier of images."""
        if str(getattr(given, "main_input_name", "")) == "pixel_values":
            return _image_batches(self, given, files), None
        return text_batches(given, files), None

    def read(self, directory: Path) -> nn.Module | None:
        """A folder as `save_pretrained` writes it: its config.json names the class and the type of model."""
        config = read_object(directory / CONFIG) if (directory / CONFIG).is_file() else {}
        names = config.get("architectures")
        if not isinstance(config.get("model_type"), str) or not isinstance(names, list) or not names:
            return None
        made: nn.Module = read_as(_class_called(names[0]), directory, {"local_files_only": True})
        return made

    def constructor(self, model: nn.Module) -> Constructor:
        """The class, called with its config."""
        cls: Any = type(model)
        given: Any = model.config
        whole: dict[str, Any] = json.loads(given.to_json_string(use_diff=False))
        entries = {k: v for k, v in whole.items() if k not in LABELS}

        def build(config: dict[str, Any]) -> nn.Module:
            made = type(given).from_dict(_of_its_layers({**whole, **config}))
            made._attn_implementation = given._attn_implementation
            net: nn.Module = cls(made)
            if getattr(model, "generation_config", None) is not None:
                net.generation_config = copy.deepcopy(model.generation_config)
            return net

        entries |= _by_layer(entries, build)
        return Constructor(f"{cls.__name__}({type(given).__name__})", entries, build)

    def config(self, model: nn.Module) -> dict[str, Any]:
        """The model's config, class name, and settings of generation where it has some."""
        held: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))  # type: ignore[operator, union-attr]
        made: dict[str, Any] = {"_class_name": type(model).__name__, "config": held}
        if (generation := getattr(model, "generation_config", None)) is not None:
            made["generation_config"] = json.loads(generation.to_json_string(use_diff=True))
        return made

    def build(self, config: dict[str, Any]) -> nn.Module:
        """The stock model, parameters on the meta device.

        Raises:
            SaveError: the config names no model class of transformers.
        """
        import transformers
        from accelerate import init_empty_weights

        cls = _class_called(config.get("_class_name"))
        with init_empty_weights(include_buffers=False):
            model: nn.Module = cls(cls.config_class.from_dict(config["config"]))
        model.tie_weights()  # type: ignore[operator]  # each went to the meta device on its own
        if isinstance(settings := config.get("generation_config"), dict):
            model.generation_config = transformers.GenerationConfig.from_dict(settings)
        return model


def _class_called(name: Any) -> Any:
    """A model class of the installed transformers.

    Raises:
        SaveError: there is none of that name.
    """
    import transformers

    cls: Any = getattr(transformers, str(name), None)
    if not (isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel)):
        raise SaveError(f"transformers has no model class called {name!r}; pass model= a stock module")
    return cls


def _image_batches(adapter: Adapter, model: Any, files: Files) -> Iterable[Any]:
    """Images and labels, prepared with the mean and the deviation that the model's folder names (else 0.5)."""
    images, config = images_in(files.path), model.config
    labels = labels_of(files.path, images, config.num_labels, getattr(config, "label2id", None))
    given: Any = adapter.example_inputs(model)
    file = Path(str(getattr(config, "_name_or_path", ""))) / "preprocessor_config.json"
    told = read_object(file) if file.is_file() else {}
    norm = (told.get("image_mean") or HALF[0], told.get("image_std") or HALF[1])
    shape = tuple(given["pixel_values"].shape[1:])
    return loader(Pictures(images, shape, {"labels": labels}, norm, entry="pixel_values"), files)


def _own_loss(model: nn.Module, batch: Any) -> Tensor:
    if not hasattr(batch, "keys"):
        raise InputsError(
            f"a batch is a {type(batch).__name__}; transformers models take dicts such as "
            "dict(input_ids=..., labels=...), or pass loss="
        )
    device = place(model)[0]
    moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    loss = getattr(model(**moved), "loss", None)
    if not isinstance(loss, Tensor):
        raise InputsError(f"{type(model).__name__} returned no loss; put labels into each batch, or pass loss=")
    return loss


def _has_part(model: nn.Module, part: str) -> bool:
    """Whether a model takes two modalities separately: it has that sub-config, and no placeholder tokens for images."""
    config: Any = model.config
    merges = any(getattr(config, name, None) is not None for name in ("image_token_id", "image_token_index"))
    return getattr(config, part, None) is not None and not merges


def _make(model: nn.Module, name: str) -> Tensor | None:
    """An input by its name, for a batch of one; None where the name is not known."""
    generator = torch.Generator().manual_seed(0)
    config: Any = model.config
    if name in ("input_ids", "decoder_input_ids"):
        text = getattr(config, "text_config", None) or config.get_text_config(decoder=name.startswith("decoder"))
        return _ids(model, text)
    if name == "pixel_values":
        vision = getattr(config, "vision_config", None) or config
        height, width = _pair(getattr(vision, "image_size", None) or 224)
        return draw(model, (1, getattr(vision, "num_channels", 3), height, width), generator)
    if name == "input_features":
        audio = getattr(config, "audio_config", None) or config
        bins = getattr(audio, "num_mel_bins", None)
        return draw(model, (1, bins, 2 * audio.max_source_positions), generator) if bins else None
    if name == "input_values":
        bins = getattr(config, "num_mel_bins", None)
        spectrogram = bins and getattr(config, "max_length", None) and not hasattr(config, "conv_dim")
        return draw(model, (1, config.max_length, int(bins or 0)) if spectrogram else (1, SAMPLES), generator)
    return None


def _ids(model: nn.Module, text: Any) -> Tensor:
    length = min(TOKENS, getattr(text, "max_position_embeddings", None) or TOKENS)
    words = int(text.vocab_size)
    ids = FIRST_TOKEN + torch.arange(length) % max(words - FIRST_TOKEN, 1)
    return (ids % words)[None].to(place(model)[0])


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[-1])


# ---- entries of a config that each layer may have for itself ----------------------------------------------------


def _by_layer(config: dict[str, Any], build: Callable[[dict[str, Any]], nn.Module]) -> dict[str, Any]:
    """`per_layer_config` with the numbers that the model's class reads for each layer, as they are for all of them.

    Most classes read one number for all layers and refuse to build where one layer has another.
    """
    count = config.get(COUNT)
    if not isinstance(count, int):
        return {}
    held = {int(k): dict(v) for k, v in (config.get(BY_LAYER) or {}).items()}

    def shapes(of: dict[str, Any]) -> list[torch.Size]:
        with silenced(), torch.device("meta"), torch.random.fork_rng(devices=[]):
            return [p.shape for p in build(of).parameters()]

    def taken(name: str, value: int) -> bool:
        try:
            return shapes({**config, BY_LAYER: {**held, 0: {**held.get(0, {}), name: value // 2}}}) != shapes(config)
        except Exception:  # noqa: BLE001 - whatever a constructor raises is its answer
            return False

    names = [n for n, v in config.items() if type(v) is int and v > 1 and n != COUNT and taken(n, v)]
    if not names:
        return {}
    return {BY_LAYER: {str(i): {**{n: config[n] for n in names}, **held.get(i, {})} for i in range(count)}}


def _of_its_layers(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what it says of layers that it does not have."""
    held, count = config.get(BY_LAYER), config.get(COUNT)
    if not held or not isinstance(count, int):
        return config
    return {**config, BY_LAYER: {i: own for i, own in held.items() if int(i) < count}}
