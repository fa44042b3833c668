"""What a run folder may hold: results, which a run that does not go on from them leaves alone, and leftovers."""

from __future__ import annotations

import re
from pathlib import Path

from edm_fast import distributed
from edm_fast.errors import UserError

RESULTS = re.compile(
    r"network-snapshot-\d+(-\d\.\d+)?\.(pkl|safetensors)|training-state-\d+\.(pt|safetensors)|stats\.jsonl"
)
LEFTOVERS = re.compile(r"\.(training-state-|network-snapshot-|preview-|training_options\.json\.|stats\.jsonl\.).*\.tmp")


def run_results(run_dir: str | Path) -> list[str]:
    """Names of the snapshots, training states and statistics in a folder."""
    folder = Path(run_dir)
    return sorted(entry.name for entry in folder.iterdir() if RESULTS.fullmatch(entry.name)) if folder.is_dir() else []


def is_inside(state: str | Path, run_dir: str | Path) -> bool:
    """Whether a training state is one of the run in this folder."""
    return Path(state).resolve().parent == Path(run_dir).resolve()


def check_free(run_dir: str | Path, resume_state_dump: str | Path | None = None) -> None:
    """Refuse to mix a run with the results of another: the folder has none, or the state that the run goes on from."""
    inside = resume_state_dump is not None and is_inside(resume_state_dump, run_dir)
    found = [] if inside or distributed.rank() != 0 else run_results(run_dir)
    found = distributed.broadcast_object(found)  # rank 0 may soon write here
    if found:
        names = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise UserError(
            f"{run_dir} holds results of a run ({names}), which nothing may overwrite; expected a training state of it "
            "to go on from (--resume), or another folder"
        )


def clear_leftovers(run_dir: str | Path) -> None:
    """Remove what a process that was killed while it wrote has left. Other programs' files stay: with --nosubdir the
    folder is whatever the user says.
    """
    folder = Path(run_dir)
    for path in folder.iterdir() if folder.is_dir() else []:
        if LEFTOVERS.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
