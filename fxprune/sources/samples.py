"""What a model makes, to look at: images of a pipeline in a grid, a text that a language model goes on with."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.errors import InputsError
from fxprune.reporting.figures import writing
from fxprune.saving import pipelines

GAP = 2  # pixels between the images of a grid


def reads_text(model: Any) -> bool:
    """Whether a model goes on from a text: a module that generates tokens."""
    return isinstance(model, nn.Module) and hasattr(model, "generate") and hasattr(model, "generation_config")


def drawn(
    pipeline: Any,
    number: int,
    steps: int,
    *,
    prompts: Sequence[str] = (),
    labels: Sequence[int] = (),
    seed: int = 0,
    progress: bool = True,
) -> list[Any]:
    """Images that a diffusers pipeline draws, as PIL has them.

    Args:
        number: how many, in all.
        prompts: taken in turns.
        labels: classes, in turns.

    Raises:
        InputsError: it is no pipeline, or it needs prompts or classes, or draws no images.
    """
    if not pipelines.is_pipeline(pipeline):
        raise InputsError(f"a {type(pipeline).__name__} alone draws nothing: name the folder of the whole pipeline")
    takes = inspect.signature(pipeline.__call__).parameters
    if number < 1 or steps < 1:
        raise InputsError(f"number={number}, steps={steps}: draw at least one image, in at least one step")
    given: dict[str, Any] = {"num_inference_steps": steps, "generator": torch.Generator().manual_seed(seed)}
    for name, values, option in (("prompt", prompts, "--prompt"), ("class_labels", labels, "--label")):
        if values and name not in takes:
            raise InputsError(f"{type(pipeline).__name__} takes no {name}: leave out {option}")
        if not values and name in takes and takes[name].default is inspect.Parameter.empty:
            raise InputsError(f"{type(pipeline).__name__} draws by {name}: pass {option}")
        if values:
            given[name] = [values[i % len(values)] for i in range(number)]
    if "prompt" in takes and not prompts:
        raise InputsError(f'{type(pipeline).__name__} draws by prompts: pass --prompt "..."')
    if not prompts and not labels:
        given["batch_size"] = number
    pipeline.set_progress_bar_config(disable=not progress)
    try:
        images = pipeline(**given).images
    except (TypeError, ValueError, RuntimeError, AttributeError) as e:
        raise InputsError(f"{type(pipeline).__name__} cannot draw so: {type(e).__name__}: {e!s:.300}") from e
    return list(images)


def save_grid(images: Sequence[Any], file: Path) -> None:
    """Write images, side by side in rows, as one picture."""
    from PIL import Image

    columns = math.ceil(math.sqrt(len(images)))
    width, height = (s + GAP for s in images[0].size)
    sheet = Image.new("RGB", (columns * width - GAP, math.ceil(len(images) / columns) * height - GAP), "white")
    for i, image in enumerate(images):
        sheet.paste(image.convert("RGB"), (i % columns * width, i // columns * height))
    with writing(file):
        sheet.save(file)


def continued(model: Any, prompts: Sequence[str], tokens: int, tokenizer: str | None = None) -> list[str]:
    """Texts that a language model goes on with, the likeliest token each time.

    Raises:
        InputsError: there is no prompt, or no tokenizer.
    """
    if not prompts:
        raise InputsError(f'a {type(model).__name__} goes on from a text: pass --prompt "..."')
    reader = tokenizer_of(model, tokenizer)
    out = []
    for prompt in prompts:
        ids = reader(prompt, return_tensors="pt")["input_ids"].to(next(model.parameters()).device)
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
        out.append(str(reader.decode(made[0], skip_special_tokens=True)))
    return out


def tokenizer_of(model: Any, given: str | None = None) -> Any:
    """The tokenizer in a folder, or in that which a model of transformers was read from.

    Raises:
        InputsError: there is none.
    """
    from transformers import AutoTokenizer

    where = given or str(getattr(model.config, "_name_or_path", "") or "")
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=Path(where).is_dir())
    except Exception as e:
        raise InputsError(
            f"no tokenizer came from {where or 'the model'}: {type(e).__name__}: {e!s:.200}; name the folder of the "
            "dense model with --tokenizer (tokenizer=)"
        ) from e
