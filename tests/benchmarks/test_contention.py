import subprocess
import sys

from tests.conftest import ROOT


def test_no_process_reports_a_locked_study():
    command = [sys.executable, "benchmarks/contention.py", "--workers", "4", "--seconds", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("reports that the study lacks: 0", "errors of the database: 0", "notices: 0"):
        assert line in done.stdout
