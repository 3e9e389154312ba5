"""Writing files and folders so that a reader, or a crash, never sees half of one.

Everything is written beside its destination under a hidden temporary name and then renamed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

__all__ = ["new_file", "new_folder", "write_bytes", "write_text"]


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file, open for writing, that becomes ``path`` when the block ends without an exception.

    An existing file is replaced in one step. After an exception, an interrupt included, it is as it was and nothing
    else is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_permissions(0o666))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Create or replace ``path`` with ``content`` in one step."""
    with new_file(path) as file:
        file.write(content)


def write_text(path: Path, content: str) -> None:
    """Create or replace ``path`` with ``content`` as UTF-8 in one step."""
    write_bytes(path, content.encode())


@contextmanager
def new_folder(path: Path, *, replaceable: Collection[str] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``path`` when the block ends without an exception.

    An existing folder is replaced only if all it holds are files whose names match the patterns in ``replaceable``, so
    that nothing else is ever lost; otherwise ``FileExistsError`` is raised, before the block runs and again before
    replacing. If the renaming fails the old folder is put back. After an exception, an interrupt included, nothing is
    left behind.
    """
    path = path.absolute()
    _refuse_unless_replaceable(path, replaceable)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    retired = temporary.with_name(f"{temporary.name}.old")
    try:
        yield temporary
        temporary.chmod(_permissions(0o777))
        _refuse_unless_replaceable(path, replaceable)
        if path.exists():
            path.rename(retired)
        temporary.rename(path)
    except BaseException:
        if retired.exists() and not path.exists():
            retired.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(retired, ignore_errors=True)


def _refuse_unless_replaceable(path: Path, replaceable: Collection[str]) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise FileExistsError(f"{path} exists and is not a folder")
    if path.is_mount():
        raise FileExistsError(f"{path} is a mount point, which can't be replaced; name a new folder inside it")
    foreign = sorted(
        entry.name
        for entry in path.iterdir()
        if entry.is_dir() or not any(fnmatchcase(entry.name, pattern) for pattern in replaceable)
    )
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise FileExistsError(f"{path} exists and would not be replaced, because it holds {shown}")


def _permissions(mode: int) -> int:
    """``mode`` under the process's umask: temporary files are private, what they become need not be."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask
