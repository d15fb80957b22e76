from dataclasses import replace

import pytest

from search.promote import main
from search.study.create import create_study
from tests.servers.counting_sweep import make_sweep


def test_task_that_the_study_names_must_be_importable(tmp_path, monkeypatch, capsys):
    create_study(replace(make_sweep(tmp_path / "runs/one", 3), task="no_such.module"), {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["promote", "one"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "runs/one: the study's task is 'no_such.module', which cannot be imported" in capsys.readouterr().err
