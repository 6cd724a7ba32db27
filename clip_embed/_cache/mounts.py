"""On which kind of file system a path lies, as far as the system tells."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    "9p|acfs|afs|beegfs|ceph|cifs|coda|davfs|glusterfs|gpfs|lustre|ncpfs|nfs4?|orangefs|pvfs2|smb[23]|smbfs|"
    "vboxsf|virtiofs|vmhgfs|fuse(?!blk).*"
)
_DRIVE_REMOTE = 4  # of Windows


def network_file_system(path: Path) -> str | None:
    """Return the name of the network file system that a path lies on, None where there is none.

    Knows Linux and Windows; elsewhere a file system counts as local. Of file systems in user space
    (FUSE) only those for local disks count as local.
    """
    if sys.platform == "win32":
        return "a network drive" if _is_remote_drive(path) else None
    kind = _mounted(path)
    return kind if _NETWORK.fullmatch(kind) else None


def _mounted(path: Path) -> str:
    """Return the type of the file system that the longest mount point above a path has; "" if unknown."""
    real = path.resolve()
    best, kind = -1, ""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, source = line.partition(b" - ")
        point = Path(os.fsdecode(mount.split()[4].decode("unicode_escape").encode("latin-1")))
        if len(point.parts) >= best and real.is_relative_to(point):  # of equal ones the last is on top
            best, kind = len(point.parts), source.split()[0].decode()
    return kind


def _is_remote_drive(path: Path) -> bool:
    import ctypes

    drive = path.resolve().drive
    windows = getattr(ctypes, "windll", None)  # of Windows only
    return drive.startswith("\\\\") or (
        windows is not None and windows.kernel32.GetDriveTypeW(f"{drive}\\") == _DRIVE_REMOTE
    )
