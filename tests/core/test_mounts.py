"""Which file systems are those of a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_embed._cache import mounts as _mounts

REMOTE = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p")
LOCAL = ("ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk")


@pytest.mark.parametrize(
    ("kind", "remote"),
    [*((kind, True) for kind in REMOTE), *((kind, False) for kind in LOCAL)],
)
def test_kinds_of_file_systems(
    kind: str, remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest mount point counts, the last of equal ones, with spaces in its name."""
    folder = tmp_path / "a b"
    folder.mkdir()
    name = str(folder).replace(" ", "\\040")
    mounts = tmp_path / "mountinfo"
    others = [("/", "ext4"), (name, "nfs"), (name, kind), (f"{name}c", "nfs"), (str(tmp_path), "nfs")]
    mounts.write_text(
        "".join(f"31 1 0:5 / {point} rw shared:2 - {each} source rw\n" for point, each in others)
    )
    monkeypatch.setattr(_mounts, "_MOUNTS", mounts)
    assert _mounts.network_file_system(folder / "x" / "cache") == (kind if remote else None)
    mounts.unlink()
    assert _mounts.network_file_system(folder) is None
