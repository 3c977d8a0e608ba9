"""Packages of third parties, as an installation leaves them behind."""

from __future__ import annotations

from pathlib import Path


def install_by_hand(folder: Path, package: str, entry_points: str) -> None:
    """What `pip install` leaves behind of a package, as far as entry points go."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")
