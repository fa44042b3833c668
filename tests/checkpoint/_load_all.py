"""Run as a program: load every file of a list, each in its own empty folder, and report what happened as JSON lines.

Hostile files may end the process, so the tests start this one and read what it managed to say.
"""

import json
import os
import sys
from pathlib import Path

import edm_fast.checkpoint as checkpoint


def main() -> None:
    """stdin: {"jobs": [{"id", "file", "folder"}]}."""
    for job in json.load(sys.stdin)["jobs"]:
        folder = Path(job["folder"])
        folder.mkdir(parents=True)
        os.environ["EDM_CANARY_DIR"] = os.environ["TMPDIR"] = str(folder)
        os.chdir(folder)
        result = {"id": job["id"], "error": None, "kind": None}
        for verb in (checkpoint.load, checkpoint.load_training_state, checkpoint.inspect):
            try:
                verb(job["file"])
            except BaseException as error:
                if verb is checkpoint.load:
                    result |= {"error": str(error), "kind": type(error).__name__}
                elif not isinstance(error, checkpoint.CheckpointError):
                    result |= {"error": f"{verb.__name__}: {error!r}", "kind": type(error).__name__}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
