"""Where this machine's PonySwarm keeps its things: a home, in one folder or the platform's four.

A home is only names: nothing is opened here. The author's journal lies with the ledger
and its fence does not, so that a restored backup of one disagrees with the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ponyswarm.errors import LocalError

VARIABLE = "PONYSWARM_HOME"


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of a home, and the files in them by name."""

    config_dir: Path
    data_dir: Path
    state_dir: Path
    cache_dir: Path

    @classmethod
    def under(cls, folder: Path) -> Home:
        """A home that is one folder."""
        return cls(folder, folder, folder / "state", folder / "cache")

    @classmethod
    def locate(
        cls, folder: str | os.PathLike[str] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Home:
        """The home ``folder``, else that of ``PONYSWARM_HOME``, else the platform's folders."""
        chosen = folder or environ.get(VARIABLE)
        if chosen:
            try:
                return cls.under(Path(chosen).expanduser().absolute())
            except RuntimeError as fault:
                raise LocalError(
                    f"the home {str(chosen)!r} cannot be found ({fault}): name a full path"
                ) from fault
        from platformdirs import PlatformDirs

        dirs = PlatformDirs("ponyswarm", appauthor=False)
        return cls(
            dirs.user_config_path, dirs.user_data_path, dirs.user_state_path, dirs.user_cache_path
        )

    def create(self) -> None:
        """Make the folders, closed to other users. Raises `LocalError` when that fails."""
        for folder in (self.config_dir, self.data_dir, self.state_dir, self.cache_dir):
            try:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as fault:
                raise LocalError(
                    f"the folder {folder} cannot be made ({fault.strerror}): choose another "
                    f"with --home DIR or {VARIABLE}"
                ) from fault

    @property
    def ini(self) -> Path:
        """The owner's settings."""
        return self.config_dir / "ponyswarm.ini"

    @property
    def key(self) -> Path:
        """The secret key of this node and of the person who uses it."""
        return self.config_dir / "key"

    @property
    def bootstrap_peers(self) -> Path:
        """The owner's own list of peers to call first."""
        return self.config_dir / "bootstrap_peers.txt"

    @property
    def ledger(self) -> Path:
        return self.data_dir / "ledger.db"

    @property
    def journal(self) -> Path:
        """What this key has signed, durable before anyone sees it."""
        return self.data_dir / "journal.db"

    @property
    def seals(self) -> Path:
        """Outcomes that this key has committed to and not told yet."""
        return self.data_dir / "seals.db"

    @property
    def blobs(self) -> Path:
        return self.data_dir / "blobs"

    @property
    def peers(self) -> Path:
        """Peers that were met."""
        return self.data_dir / "peers.json"

    @property
    def fence(self) -> Path:
        """Which journal is the true one, kept away from it."""
        return self.state_dir / "fence"

    @property
    def witness(self) -> Path:
        """What this key signed about trees: its own checkpoints, and what it cosigned."""
        return self.state_dir / "witness.db"

    @property
    def status(self) -> Path:
        """What the running node tells other commands."""
        return self.state_dir / "status.json"

    @property
    def wishes(self) -> Path:
        """Blobs that commands want the running node to fetch."""
        return self.state_dir / "wishes"

    @property
    def told(self) -> Path:
        """The verdicts that the notify command was told of."""
        return self.state_dir / "told.json"

    @property
    def hook_log(self) -> Path:
        """What git hooks did in the background."""
        return self.state_dir / "hook.log"

    @property
    def control(self) -> Path:
        """What `pause` and `drain` told the node."""
        return self.state_dir / "control.json"

    @property
    def lock(self) -> Path:
        """Held by the one running node."""
        return self.state_dir / "lock"

    @property
    def cache(self) -> Path:
        """What can be made again: environments, wheels, unpacked sources."""
        return self.cache_dir

    @property
    def scratch(self) -> Path:
        """Where runs live while they last."""
        return self.cache_dir / "scratch"
