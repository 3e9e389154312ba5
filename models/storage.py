"""Writing files and folders so that a reader, or a crash, never sees half of one.

Everything is written beside its destination under a hidden temporary name and then renamed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

__all__ = ["new_folder", "write_bytes", "write_text"]


def write_bytes(path: Path, content: bytes) -> None:
    """Create or replace ``path`` with ``content`` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_permissions(0o666))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, content: str) -> None:
    """Create or replace ``path`` with ``content`` as UTF-8 in one step."""
    write_bytes(path, content.encode())


@contextmanager
def new_folder(path: Path, *, replaceable: Iterable[str] = ()) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``path`` when the block ends without an exception.

    An existing folder is replaced only if all it holds are files whose names match the glob patterns
    ``replaceable``, so that nothing of the user's is lost; otherwise ``FileExistsError`` is raised before the
    block runs. It is replaced at the end of the block, and put back if the renaming fails. After an exception, an
    interrupt included, nothing is left behind.
    """
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} exists and is not a folder")
    patterns = tuple(replaceable)
    foreign = sorted(
        entry.name
        for entry in (path.iterdir() if path.exists() else ())
        if entry.is_dir() or not any(fnmatchcase(entry.name, pattern) for pattern in patterns)
    )
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise FileExistsError(f"{path} exists and would not be replaced, because it holds {shown}")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(_permissions(0o777))
        if path.exists():
            with tempfile.TemporaryDirectory(prefix=f".{path.name}.old.", dir=path.parent) as old:
                retired = path.rename(Path(old) / path.name)
                try:
                    temporary.rename(path)
                except BaseException:
                    retired.rename(path)
                    raise
        else:
            temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _permissions(mode: int) -> int:
    """``mode`` under the process's umask: temporary files are private, what they become need not be."""
    mask = os.umask(0)
    os.umask(mask)
    return mode & ~mask
