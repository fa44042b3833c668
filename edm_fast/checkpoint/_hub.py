"""Repositories of the Hugging Face hub, through huggingface_hub (the extra [hub]).

Only safetensors and JSON are ever asked for: whatever else a repository holds is neither fetched nor read, but for the
model card of one that is written to.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from edm_fast.checkpoint._records import CheckpointError
from edm_fast.checkpoint._writable import FILE_ENDING
from edm_fast.errors import BROKEN, UserError, one_line

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?!.*\.\.)([\w.-][\w./-]*))?", re.ASCII)
READ = (".safetensors", ".json")
EXTRA = "pip install 'edm-fast[hub]'"


def is_repository(name: str) -> bool:
    """Whether `name` may be USER/REPO or USER/REPO@REVISION: it has no ending of a file, and no folder USER is here."""
    ends = FILE_ENDING.fullmatch(Path(name).suffix)
    return bool(NAME.fullmatch(name)) and not ends and not os.path.exists(os.path.dirname(name))


def download(name: str, files: Collection[str]) -> Path:
    """The folder of the hub's cache that holds these files of a repository, all of one commit.

    CheckpointError if one of them is not there, or huggingface_hub is not.
    """
    assert all(file.endswith(READ) for file in files)
    repo, revision = _parts(name)
    library, folder = _library(name), None
    for file in files:
        try:
            if folder is None and not isinstance(library.try_to_load_from_cache(repo, file, revision=revision), str):
                # asked once, as hf_hub_download goes on trying for half a minute where nobody answers
                library.HfApi(library_name="edm-fast").model_info(repo, revision=revision, timeout=10)
            folder = Path(library.hf_hub_download(repo, file, revision=revision)).parent
        except UserError:
            raise
        except BROKEN as error:
            what = "no such file or folder, and no repository of the Hugging Face hub that can be read"
            raise CheckpointError(f"{name}: {what} ({file}: {one_line(error)[:200]})") from None
        revision = folder.name  # the commit, so that the next file is of the same one
    assert folder is not None
    return folder


def upload(
    name: str,
    folder: Path,
    private: bool | None,
    message: str,
    beside: Mapping[str, bool],
    stale: Callable[[str], bool],
) -> tuple[str, list[str]]:
    """Make the repository if it is new, and put the files of a folder into it as one commit: the address of the commit,
    and the texts that stay.

    beside: names of texts, and whether one that is there stays; but those that are stale are replaced or removed (the
    commits before it keep them). Refused if another commit comes in between.
    """
    repo, revision = _parts(name)
    library = _library(name)
    api = library.HfApi(library_name="edm-fast")
    kept: dict[str, str] = {}
    gone = []
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        head = api.model_info(repo, revision=revision).sha
        for file in (file for file in beside if api.file_exists(repo, file, revision=head)):
            path = Path(library.hf_hub_download(repo, file, revision=head))
            text = path.read_text(encoding="utf-8", errors="replace")
            if stale(text):
                gone += [] if (folder / file).exists() else [file]
            elif beside[file]:
                kept[file] = text
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            parent_commit=head,
            ignore_patterns=[*kept] or None,
            delete_patterns=gone or None,  # even an empty list would be compared with all files there
        )
    except BROKEN as error:
        raise UserError(f"{name}: cannot be written to the Hugging Face hub ({one_line(error)[:200]})") from None
    return str(getattr(done, "commit_url", done)), [*kept.values()]


def _parts(name: str) -> tuple[str, str | None]:
    found = NAME.fullmatch(name)
    if found is None:
        raise UserError(f"{name!r} is no name of a repository; expected USER/REPO or USER/REPO@REVISION")
    return found[1], found[2]


def _library(name: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except BROKEN as error:
        raise CheckpointError(
            f"{name}: no such file or folder; repositories of the Hugging Face hub need huggingface_hub ({EXTRA}), "
            f"which cannot be imported: {one_line(error)[:100]}"
        ) from None
