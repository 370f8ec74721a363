"""Atomic writing: files are complete or unchanged."""

import os

import pytest

from keras_resnet.files import atomic_write, remove_leftovers


def test_atomic_write_renames_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "model.weights.h5"
    path.write_text("old")
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent and temporary.name.endswith(".weights.h5")
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_atomic_write_keeps_the_old_file_when_the_block_fails(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_atomic_write_follows_links(tmp_path):
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"


def test_remove_leftovers_removes_only_temporary_files_of_the_given_patterns(tmp_path):
    kept = tmp_path / "a.txt", tmp_path / ".b.txt", tmp_path / ".0123abcd.c.txt"
    for path in kept:
        path.touch()
    for name in ("a.txt", "best_1.txt"):
        with atomic_write(tmp_path / name) as temporary:
            temporary.touch()
            left = temporary
        left.touch()
    remove_leftovers(tmp_path, "a.txt", "best_*.txt")
    assert {*tmp_path.iterdir()} == {*kept, tmp_path / "best_1.txt"}


def test_atomic_write_explains_unusable_folders(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="should exist.*absent"), atomic_write(tmp_path / "absent/a"):
        pass
    with pytest.raises(IsADirectoryError, match="not a folder"), atomic_write(tmp_path):
        pass
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="should be writable"), atomic_write(tmp_path / "a"):
        pass
