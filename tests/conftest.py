import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, so that runs/ is what the test left there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*flags, script=ROOT / "ppo_continuous.py"):
    """The script in a process of its own, as a user starts it."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    pipe = subprocess.PIPE
    command = [sys.executable, str(script), *map(str, flags)]
    return subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)


@pytest.fixture
def run():
    """Runs the script to its end: (exit status, stdout, stderr)."""

    def run_script(*flags, **kwargs):
        process = start(*flags, **kwargs)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return run_script
