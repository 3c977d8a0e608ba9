"""Where a saved model lies: a folder, or a model's name on the hub, from where huggingface_hub fetches it."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from fxprune.errors import SaveError
from fxprune.saving.folder import standing

NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
UNREAD = [
    "*.py",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.msgpack",
    "*.h5",
    "*.onnx",
    "*.pkl",
]  # code, and what is not ours
INSTALL = "pip install huggingface_hub"


def found(
    given: str | os.PathLike[str], subfolder: str | None, revision: str | None = None, token: str | bool | None = None
) -> tuple[Path, str | None]:
    """The folder of a saved model, and the name on the hub that it was fetched by.

    Raises:
        SaveError: `subfolder` leads out of it; or the hub has no such model, or cannot be reached.
    """
    inner = PurePosixPath(subfolder or ".")
    if inner.is_absolute() or ".." in inner.parts:
        raise SaveError(f'subfolder={subfolder!r:.60} must be a folder inside of the model\'s, such as "unet"')
    path = Path(given)
    here = path.exists() or standing(path) != path
    if here or not isinstance(given, str) or not is_name(given):
        return path / inner, None
    pattern = "*" if subfolder is None else f"{inner}/*"
    return fetched(given, revision, token, pattern) / inner, given


def is_name(given: object) -> bool:
    """Whether it can be a model's name on the hub."""
    return isinstance(given, str) and bool(NAME.fullmatch(given)) and ".." not in given.split("/")


def fetched(
    name: str, revision: str | None, token: str | bool | None, pattern: str | list[str], unread: list[str] = UNREAD
) -> Path:
    """The folder on this machine with the files of a model on the hub.

    Args:
        pattern: globs of the files that are wanted.
        unread: globs of those that are not.

    Raises:
        SaveError: the hub has no such model, or cannot be reached.
    """
    missing = f"there is no folder {name}, and no model of that name came from the hub"
    hub = library(missing)
    try:
        folder: str = hub.snapshot_download(
            name, revision=revision, token=token, allow_patterns=pattern, ignore_patterns=unread
        )
    except Exception as e:
        raise SaveError(f"{missing}: {type(e).__name__}: {e!s:.300}") from e
    return Path(folder)


def library(why: str) -> Any:
    """huggingface_hub.

    Raises:
        SaveError: it is not installed; says so after `why`.
    """
    try:
        import huggingface_hub
    except ImportError as e:
        raise SaveError(f"{why}: {INSTALL}") from e
    return huggingface_hub


def push(folder: Path, name: str, subfolder: str | None, options: dict[str, Any]) -> Any:
    """Upload a folder as a model of the hub; what its `upload_folder` returns.

    Args:
        options: of huggingface_hub: `private`, `token`, `commit_message`, `create_pr`, `revision`.
    """
    api = library(f"{name} cannot be pushed").HfApi(token=options.get("token"))
    name = api.create_repo(name, private=options.get("private"), exist_ok=True).repo_id
    return api.upload_folder(
        repo_id=name,
        folder_path=str(folder),
        path_in_repo=subfolder or "",
        commit_message=options.get("commit_message") or "Upload a model pruned by fxprune",
        create_pr=options.get("create_pr") or False,
        revision=options.get("revision"),
    )
