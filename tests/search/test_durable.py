import pytest

from search import durable as retry
from search.durable import retry_while_unreachable, write_bytes, write_text


def test_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "note.txt"
    for text in ("the old text, which is longer", "pâté"):
        write_text(path, text, concurrent=True)
    assert path.read_text(encoding="utf-8") == "pâté"
    assert list(folder.iterdir()) == [path]


def test_failed_write_leaves_the_old_content(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    path.mkdir()
    with pytest.raises(OSError):
        write_bytes(path, b"new")
    assert list(folder.iterdir()) == [path]


def test_secret_is_for_its_owner_only(tmp_path):
    write_text(tmp_path / "secret", "password", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


AWAY = ConnectionError("away")


def failing(times, error=AWAY):
    """Fail so many times, then answer."""
    answers = iter([error] * times)

    def ask():
        if fault := next(answers, None):
            raise fault
        return "answer"

    return ask


def is_away(error):
    return isinstance(error, ConnectionError)


def test_faults_that_pass_are_retried_in_growing_pauses(monkeypatch):
    monkeypatch.setattr(retry, "PAUSE_SECONDS", 0.01)
    waits = []
    answer = retry_while_unreachable(failing(4), 60, is_away, lambda _, num, pause: waits.append((num, pause)), 0.04)
    assert answer == "answer"
    assert waits == [(1, 0.01), (2, 0.02), (3, 0.04), (4, 0.04)]


def test_last_fault_is_raised_when_patience_is_over():
    with pytest.raises(ConnectionError, match="away"):
        retry_while_unreachable(failing(1), 0, is_away)


def test_other_faults_are_raised_at_once():
    with pytest.raises(ValueError, match="wrong"):
        retry_while_unreachable(failing(1, ValueError("wrong")), 60, is_away)


def test_names_that_are_not_utf8_become_escapes(tmp_path):
    write_text(tmp_path / "text", "ä \udcff")
    assert (tmp_path / "text").read_text(encoding="utf-8") == r"ä \udcff"
