"""Folders of images: the shape that a model takes, classes by sub-folder, captions beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from saved_nets import tiny_unet
from torch import nn

import fxprune
from fxprune.adapter import Files
from fxprune.sources.pictures import Pictures, captions_of, images_in, labels_of, loader


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five grey images, two of them in a sub-folder called b, three in a."""
    for k in range(5):
        (inner := tmp_path / "ab"[k % 2]).mkdir(exist_ok=True)
        Image.effect_noise((20 + k, 16), 50).save(inner / f"{k}.png")
    return tmp_path


def test_images_have_the_models_shape_and_the_last_small_batch_is_left_out(folder: Path) -> None:
    shapes = {n: [tuple(b.shape) for b in fxprune.open_data(tiny_unet(), folder, batch=n).batches] for n in (2, 99)}
    assert shapes == {2: [(2, 1, 8, 8)] * 2, 99: [(5, 1, 8, 8)]}
    image = Pictures(images_in(folder), (3, 8, 8), {})[0]
    assert -1 <= image.min() < -0.1 < 0.1 < image.max() <= 1


def test_the_norm_is_taken_off_each_channel(folder: Path) -> None:
    plain, normed = (Pictures(images_in(folder), (3, 8, 8), {}, norm)[1] for norm in ((0, 1), ((0, 0.5, 1), (1, 2, 4))))
    torch.testing.assert_close(normed[1], (plain[1] - 0.5) / 2)
    torch.testing.assert_close(normed[2], (plain[2] - 1) / 4)


def test_one_order_without_shuffling_and_others_with(folder: Path) -> None:
    data = Pictures(images_in(folder), (1, 8, 8), {})

    def order(**given: Any) -> list[float]:
        return [float(b.sum()) for b in loader(data, Files(folder, 1, **given))]

    assert order() == order() != order(seed=1)
    assert sorted(order()) == sorted(order(seed=1))
    torch.manual_seed(0)
    assert order(shuffle=True) != order(shuffle=True)


def test_what_holds_no_images_is_told(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(fxprune.InputsError, match="holds no image"):
        images_in(empty)
    with pytest.raises(fxprune.InputsError, match="there is no folder"):
        images_in(empty / "none")
    with pytest.raises(fxprune.InputsError, match="takes 4 channels, which are not those of an image"):
        Pictures(images_in(folder), (4, 8, 8), {})
    (folder / "broken.png").write_text("no image")
    with pytest.raises(fxprune.InputsError, match=r"broken.png is no image that can be read"):
        Pictures([folder / "broken.png"], (3, 8, 8), {})[0]
    with pytest.raises(fxprune.InputsError, match="knows no files of data for a Linear"):
        fxprune.open_data(nn.Linear(2, 2), folder)


LABELS: dict[str, tuple[int, dict[str, int], list[int] | str]] = {
    "by the order of their names": (2, {}, [0, 0, 0, 1, 1]),
    "by the model's own names": (9, {"a": 7, "b": 3}, [7, 7, 7, 3, 3]),
    "neither": (9, {"a": 7}, r"has 2 sub-folders \(a, b\), the model 9 classes: call the folders"),
}


@pytest.mark.parametrize("case", LABELS)
def test_sub_folders_are_classes(folder: Path, case: str) -> None:
    classes, known, wanted = LABELS[case]
    if isinstance(wanted, str):
        with pytest.raises(fxprune.InputsError, match=wanted):
            labels_of(folder, images_in(folder), classes, known)
    else:
        assert labels_of(folder, images_in(folder), classes, known) == wanted


def test_numbers_are_classes_and_an_image_outside_is_told(folder: Path) -> None:
    (folder / "a").rename(folder / "12")
    (folder / "b").rename(folder / "3")
    assert labels_of(folder, images_in(folder), 20) == [12, 12, 12, 3, 3]
    (folder / "3" / "1.png").rename(folder / "1.png")
    with pytest.raises(fxprune.InputsError, match=r"1.png stands in no sub-folder"):
        labels_of(folder, images_in(folder), 20)


def test_captions_stand_in_a_table_or_beside(folder: Path) -> None:
    images = images_in(folder)
    rows = [{"file_name": p.name, "text": f"in a: {p.stem}"} for p in images if p.parent.name == "a"]
    (folder / "a" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for image in (p for p in images if p.parent.name == "b"):
        image.with_suffix(".txt").write_text(f"in b: {image.stem}\n")
    assert captions_of(folder, images) == ["in a: 0", "in a: 2", "in a: 4", "in b: 1", "in b: 3"]
    (folder / "a" / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,caption\n" + "\n".join(f"a/{k}.png,c{k}" for k in (0, 2, 4)))
    assert captions_of(folder, images)[:3] == ["c0", "c2", "c4"]
    (folder / "b" / "3.txt").unlink()
    with pytest.raises(fxprune.InputsError, match=r"3.png has no caption: put one into 3.txt"):
        captions_of(folder, images)
    (folder / "metadata.csv").write_text("file_name,what\na/0.png,x\n")
    with pytest.raises(fxprune.InputsError, match=r"metadata.csv, row 1, has no file_name, or no caption"):
        captions_of(folder, images)
