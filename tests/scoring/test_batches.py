"""Batches of any form, a sample at a time."""

from __future__ import annotations

import torch

from fxprune.scoring.batches import batch_size, take


def test_batches_are_taken_apart_by_their_first_tensor() -> None:
    batch = {"x": torch.arange(6).reshape(3, 2), "more": (torch.arange(3), 7, torch.ones(2)), "name": "n"}
    batch |= {"prompt": ["a", "b", "c"], "modes": ["u", "v"]}
    assert batch_size(batch) == 3
    part = take(batch, [2, 0])
    assert part["x"].tolist() == [[4, 5], [0, 1]]
    assert part["more"][0].tolist() == [2, 0]
    assert part["more"][1] == 7
    assert part["more"][2].tolist() == [1, 1]
    assert part["prompt"] == ["c", "a"]
    assert part["modes"] == ["u", "v"]
    assert batch_size("text") == batch_size(torch.ones(())) == 0
