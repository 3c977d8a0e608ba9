"""Text files as batches for a language model of transformers, through its own tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fxprune.adapter import Files
from fxprune.errors import InputsError
from fxprune.sources.samples import tokenizer_of

LENGTH = 128  # tokens of a sample, as far as the model and the text go
MASKED = 0.15  # of the tokens, for a masked language model (Devlin et al., BERT, 2019)
IGNORED = -100  # label that torch's cross-entropy leaves out


def text_batches(model: Any, files: Files) -> Iterable[Any]:
    """Pieces of a text as dict(input_ids, labels), the last short one left out.

    Raises:
        InputsError: there is no text, or it is too short; the model is no language model; or there is no tokenizer.
    """
    masked = _is_masked(model)
    text, tokenizer = _text(files.path), tokenizer_of(model, files.tokenizer)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    config = model.config.get_text_config()
    length = min(LENGTH, getattr(config, "max_position_embeddings", None) or LENGTH, len(ids))
    if length < 2:
        raise InputsError(f"{files.path} holds {len(ids)} tokens; a language model needs two at least")
    if int(ids.max()) >= config.vocab_size:
        raise InputsError(
            f"the tokenizer knows token {int(ids.max())}, the model {config.vocab_size} tokens: they are not of each "
            "other; name the model's own with --tokenizer (tokenizer=)"
        )
    rows = ids[: len(ids) // length * length].reshape(-1, length)
    samples = [_hidden(row, i, tokenizer, files.seed) if masked else {"input_ids": row, "labels": row}
               for i, row in enumerate(rows)]  # fmt: skip
    size = min(files.batch, len(samples))
    if files.shuffle:
        return DataLoader(samples, size, shuffle=True, drop_last=True)  # type: ignore[arg-type]
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(files.seed))
    return DataLoader([samples[i] for i in order.tolist()], size, drop_last=True)  # type: ignore[arg-type]


def _is_masked(model: nn.Module) -> bool:
    """Whether a language model fills gaps, rather than goes on.

    Raises:
        InputsError: it does neither.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kind: Any = type(model.config)
    for masked, mapping in ((False, MODEL_FOR_CAUSAL_LM_MAPPING), (True, MODEL_FOR_MASKED_LM_MAPPING)):
        if kind in mapping and isinstance(model, mapping[kind]):
            return masked
    raise InputsError(
        f"{type(model).__name__} is neither a causal nor a masked language model, so text alone is no data for it: "
        "pass data= in Python, batches with labels"
    )


def _text(path: Path) -> str:
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputsError(f"{path} holds no text: name a text file, or a folder of .txt files")
    try:
        return "\n".join(file.read_text(encoding="utf-8") for file in files)
    except (OSError, ValueError) as e:
        raise InputsError(f"{path} cannot be read as text: {type(e).__name__}: {e}") from e


def _hidden(row: Tensor, number: int, tokenizer: Any, seed: int) -> dict[str, Tensor]:
    """A row with some tokens hidden, and as labels what they were."""
    if tokenizer.mask_token_id is None:
        raise InputsError("the tokenizer has no mask token, which a masked language model is trained with")
    hidden = torch.rand(len(row), generator=torch.Generator().manual_seed(seed + number)) < MASKED
    hidden[number % len(row)] = True
    return {
        "input_ids": torch.where(hidden, tokenizer.mask_token_id, row),
        "labels": torch.where(hidden, row, IGNORED),
    }
