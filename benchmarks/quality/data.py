"""The images that the quality benchmark trains and measures on: emoji of two vendors, 32x32 RGB; and the digits.

    python benchmarks/quality/data.py [--out FILE.npz]

npm fetches two packages into a cache folder, once; nothing of them is committed.  Licences: Twemoji's graphics
CC-BY 4.0 (Twitter and contributors), Noto Emoji's images Apache-2.0 (Google), the packages around them MIT (Cal
Henderson).  Skin tones are left out: they would make six in ten images people.

The file holds `images` (n, 32, 32, 3) uint8 composited on white, `labels` (n,) uint8 into `categories`, `held_out` (n,)
bool, and `names` (n,), code points and vendor.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor

VERSION = "16.0.0"
VENDORS = ("twitter", "google")
SIDE = 32
HELD_OUT = 0.1  # of the emoji; both vendors' images of one are on the same side
CACHE = Path(__file__).with_name("cache")  # git ignores it
PREPARED = CACHE / "emoji.npz"


@dataclass(frozen=True)
class Split:
    """Images (n, C, H, W) in [-1, 1] and labels (n,): those to train on, and those that no model has seen."""

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    categories: tuple[str, ...]
    mirrored: bool = True  # whether a mirrored image is as good as the image

    def to(self, device: torch.device | str) -> Split:
        """The same on another device."""
        moved = (t.to(device) for t in (self.train, self.train_labels, self.held_out, self.held_out_labels))
        return Split(*moved, self.categories, self.mirrored)


def fetch(vendor: str, folder: Path = CACHE) -> Path:
    """Let npm fetch and check one package; returns its tarball.

    Raises:
        SystemExit: npm is not there or fails.
    """
    name = f"emoji-datasource-{vendor}"
    tarball = folder / f"{name}-{VERSION}.tgz"
    if tarball.exists():
        return tarball
    if not (npm := shutil.which("npm")):
        raise SystemExit(
            f"npm is missing: install Node.js, or save {name}@{VERSION} from the npm registry as {tarball}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run([npm, "pack", f"{name}@{VERSION}", "--pack-destination", str(folder)])
    if done.returncode:
        raise SystemExit(f"npm pack {name}@{VERSION} failed; see above")
    return tarball


def on_white(png: bytes) -> np.ndarray:
    """Decode, composite on white, and shrink by averaging: (SIDE, SIDE, 3) uint8."""
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    white = Image.new("RGBA", drawn.size, "white")
    flat = Image.alpha_composite(white, drawn).convert("RGB")
    return np.asarray(flat.resize((SIDE, SIDE), Image.Resampling.BOX))


def read(tarball: Path, vendor: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Every emoji's record and its image by this vendor."""
    with tarfile.open(tarball) as tar:
        files = {m.name: m for m in tar.getmembers()}
        records = json.load(tar.extractfile(files["package/emoji.json"]))  # type: ignore[arg-type]
        for record in records:
            member = files.get(f"package/img/{vendor}/64/{record['image']}")
            if member and record[f"has_img_{vendor}"] and record["category"] != "Component":
                yield record, on_white(tar.extractfile(member).read())  # type: ignore[union-attr]


def prepare(out: Path = PREPARED) -> Path:
    """Fetch and write the file."""
    rows = [(r, image, vendor) for vendor in VENDORS for r, image in read(fetch(vendor), vendor)]
    category = {r["unified"]: r["category"] for r, _, _ in rows}
    emoji = sorted(category)
    _, held_out = train_test_split(emoji, test_size=HELD_OUT, stratify=[category[e] for e in emoji], random_state=0)
    categories = sorted(set(category.values()))
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        out,
        images=np.stack([image for _, image, _ in rows]),
        labels=np.array([categories.index(r["category"]) for r, _, _ in rows], np.uint8),
        held_out=np.isin([r["unified"] for r, _, _ in rows], held_out),
        names=np.array([f"{r['unified']} {vendor}" for r, _, vendor in rows]),
        categories=np.array(categories),
    )
    return out


def load(file: Path | str = PREPARED) -> Split:
    """Read the prepared file; "digits" stands for the demo's 8x8 digits.

    Raises:
        SystemExit: there is no such file.
    """
    if str(file) == "digits":
        from fxprune.demo.digits import load_digits_split

        d = load_digits_split()
        names = tuple(map(str, range(10)))
        return Split(
            d.train_images, d.train_labels.long(), d.held_out_images, d.held_out_labels.long(), names, mirrored=False
        )
    if not Path(file).exists():
        raise SystemExit(f"{file} is missing; type: python benchmarks/quality/data.py --out {file}")
    with np.load(file) as held:
        images = torch.from_numpy(held["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels, unseen = torch.from_numpy(held["labels"]).long(), torch.from_numpy(held["held_out"])
        return Split(
            images[~unseen], labels[~unseen], images[unseen], labels[unseen], tuple(held["categories"].tolist())
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PREPARED)
    written = prepare(parser.parse_args().out)
    split = load(written)
    print(f"{written}: {len(split.train)} images to train on, {len(split.held_out)} held out, {split.categories}")
