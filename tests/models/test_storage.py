from __future__ import annotations

from pathlib import Path

import pytest

from models import storage

JSON = ["a.json", "b.json"]


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_readable(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    storage.write_text(target, "first")
    storage.write_text(target, "sécond")
    assert target.read_text(encoding="utf-8") == "sécond"
    assert target.stat().st_mode & 0o444 == 0o444
    assert listing(target.parent) == ["file.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file.txt"
    storage.write_text(target, "old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        storage.write_text(target, "new")
    assert target.read_text() == "old"
    assert listing(tmp_path) == ["file.txt"]


def test_a_folder_appears_only_when_done(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with storage.new_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert listing(target) == ["a"]
    assert listing(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_folder_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with storage.new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("1")
            raise error

    with pytest.raises(error):
        interrupted()
    assert listing(tmp_path) == []


def test_an_interrupted_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with storage.new_folder(target) as folder:
        (folder / "a.json").write_text("old")

    def interrupted() -> None:
        with storage.new_folder(target, replaceable=JSON) as folder:
            (folder / "a.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (target / "a.json").read_text() == "old"
    with storage.new_folder(target, replaceable=JSON) as folder:
        (folder / "b.json").write_text("new")
    assert listing(target) == ["b.json"]
    assert listing(tmp_path) == ["out"]


def test_a_folder_with_anything_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with (
        pytest.raises(FileExistsError, match=r"holds thesis\.tex"),
        storage.new_folder(tmp_path / "out", replaceable=JSON),
    ):
        pytest.fail("the block must not run")
    assert listing(tmp_path / "out") == ["thesis.tex"]


def test_a_file_put_there_in_the_meantime_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "out"

    def disturbed() -> None:
        with storage.new_folder(target, replaceable=JSON) as folder:
            (folder / "a.json").write_text("new")
            target.mkdir()
            (target / "thesis.tex").write_text("years of work")

    with pytest.raises(FileExistsError, match=r"holds thesis\.tex"):
        disturbed()
    assert listing(tmp_path) == ["out"]
    assert listing(target) == ["thesis.tex"]


@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupt_amid_the_renaming_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The interrupt comes as the first rename (of the old folder away) or the second (of the new one in) returns."""
    target = tmp_path / "out"
    with storage.new_folder(target) as folder:
        (folder / "a.json").write_text("old")
    rename, calls = Path.rename, []

    def interrupted(self: Path, to: Path) -> Path:
        moved = rename(self, to)
        calls.append(to)
        if len(calls) == step:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)

    def replace() -> None:
        with storage.new_folder(target, replaceable=JSON) as folder:
            (folder / "a.json").write_text("new")

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert (target / "a.json").read_text() == ("old" if step == 1 else "new")
    assert listing(tmp_path) == ["out"]


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "out")
    with pytest.raises(FileExistsError, match="mount point"), storage.new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(FileExistsError, match="not a folder"), storage.new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
