import pytest

from search.files import write_bytes, write_text


def test_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "note.txt"
    for text in ("the old text, which is longer", "pâté"):
        write_text(path, text, concurrent=True)
    assert path.read_text(encoding="utf-8") == "pâté"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(OSError):
        write_bytes(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_secret_is_for_its_owner_only(tmp_path):
    write_text(tmp_path / "secret", "password", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
