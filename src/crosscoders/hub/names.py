"""What names a place on the Hub: repository, revision, sub-folder."""

import re
from dataclasses import dataclass
from typing import final

from crosscoders._io import is_member_name

_REPO_ID = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?/[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REPO_ID_LENGTH = 96


def is_repo_id(name: str) -> bool:
    """Whether this could be the name of a repository, "owner/name"."""
    fits = len(name) <= _REPO_ID_LENGTH and _REPO_ID.fullmatch(name) is not None
    return fits and "--" not in name and ".." not in name and not name.endswith(".git")


def is_commit(revision: str) -> bool:
    """Whether this is the full name of a commit, 40 hex digits."""
    return _COMMIT.fullmatch(revision) is not None


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder of a repository at a revision.

    Args:
        repo_id: "owner/name".
        revision: Branch, tag or commit.
        subfolder: Folder inside the repository, "" for its root.
    """

    repo_id: str
    revision: str = "main"
    subfolder: str = ""

    def __post_init__(self) -> None:
        if not is_repo_id(self.repo_id):
            raise ValueError(
                f"hub: {self.repo_id!r} is not the name of a repository; expected 'owner/name' of letters, "
                "digits, '.', '_' and '-'."
            )
        for what, name in (("revision", self.revision), ("subfolder", self.subfolder or "root")):
            if not is_member_name(name):
                raise ValueError(f"hub: {name!r} cannot be the {what} of {self.repo_id}.")

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.revision}" + (f":{self.subfolder}" if self.subfolder else "")

    def name_in_repo(self, name: str) -> str:
        """Path inside the repository of a file of this folder."""
        return f"{self.subfolder}/{name}" if self.subfolder else name


def place(repo_id: str, *, revision: str | None, subfolder: str | None) -> Place:
    """A place from what a caller may leave out; a trailing slash of the sub-folder does not matter."""
    folder = (subfolder or "").rstrip("/")
    return Place(repo_id=repo_id, revision="main" if revision is None else revision, subfolder=folder)
