"""Locks on open files, which the system takes back when a process ends in whatever way."""

import os
import sys

__all__ = ["has_lock", "lock"]

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)  # what is locked there cannot be read by others
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock(descriptor: int) -> bool:
    """Lock an open file, or on Unix a folder, without waiting.

    Returns:
        Whether it is locked now; else another process or thread has it.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        _lock(descriptor)
    except (BlockingIOError, PermissionError):
        return False
    return True


def has_lock(descriptor: int) -> bool:
    """Lock as `lock` does; where there are no locks, nobody can have one."""
    try:
        return lock(descriptor)
    except OSError:
        return True
