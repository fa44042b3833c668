"""A stand-in for the Hugging Face hub: its cache on disk, which huggingface_hub itself reads, and what writes to it."""

import shutil
import types
from pathlib import Path

from helpers import peers


class Hub:
    """Repositories as huggingface_hub keeps them: refs/BRANCH names a commit, snapshots/COMMIT holds its files."""

    def __init__(self, folder, monkeypatch):
        peers.expect("huggingface_hub")
        from huggingface_hub import HfApi, constants

        self.folder, self.made = folder, []
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        for name in ("create_repo", "file_exists", "model_info", "upload_folder"):
            monkeypatch.setattr(HfApi, name, staticmethod(getattr(self, name)))

    def head(self, repo, revision=None):
        root = self.folder / f"models--{repo.replace('/', '--')}"
        ref = root / "refs" / (revision or "main")
        return root / "snapshots" / (ref.read_text() if ref.exists() else "0" * 40)

    def create_repo(self, repo, private=None, exist_ok=False):
        assert exist_ok
        self.made.append((repo, private))

    def file_exists(self, repo, file, revision=None):
        return (self.head(repo).with_name(revision) / file).exists()

    def model_info(self, repo, revision=None):
        return types.SimpleNamespace(sha=self.head(repo, revision).name)

    def upload_folder(
        self,
        repo_id,
        folder_path,
        revision=None,
        commit_message=None,
        parent_commit=None,
        ignore_patterns=None,
        delete_patterns=None,
    ):
        before = self.head(repo_id, revision)
        if parent_commit not in (None, before.name):
            raise ValueError("a commit has happened since")
        commit = f"{len([*before.parent.glob('*')]) + 1:040x}"
        after = before.with_name(commit)
        if before.exists():
            shutil.copytree(before, after)
        for path in Path(folder_path).iterdir():
            if path.name not in (ignore_patterns or ()):
                after.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, after)
        for name in delete_patterns or ():
            (after / name).unlink()
        ref = after.parents[1] / "refs" / (revision or "main")
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(commit)
        return f"hub://{repo_id}/{commit}: {commit_message}"
