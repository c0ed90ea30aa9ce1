import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
started = []  # processes of the test that runs
SCRIPTS = {"ppo_continuous": ("Box", "Pendulum-v1"), "ppo_discrete": ("Discrete", "CartPole-v1")}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, so that runs/ is what the test left there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=SCRIPTS)
def script(request, monkeypatch):
    """Runs a test with each script: as ppo in its module, with probes of the script's kind, and TASK, a real one."""
    actions, request.module.TASK = SCRIPTS[request.param]
    request.module.ppo = importlib.import_module(request.param)
    monkeypatch.setenv("PROBE_ACTIONS", actions)


def start(*flags, script):
    """The script in a process of its own, as a user starts it."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    pipe = subprocess.PIPE
    command = [sys.executable, str(script), *map(str, flags)]
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
    started.append(process)
    return process


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    while started:
        started.pop().kill()


@pytest.fixture
def run():
    """Runs a script to its end: (exit status, stdout, stderr)."""

    def run_script(*flags, **kwargs):
        process = start(*flags, **kwargs)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return run_script
