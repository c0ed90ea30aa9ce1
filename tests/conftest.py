"""What several tests share: the scripts, small runs of them, and processes that end with their test."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPTS = ["ppo_continuous", "ppo_discrete", "ppo_atari"]
started = []  # processes of the test that runs
torch.set_num_threads(1)
sys.path.append(str(ROOT / "variants"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, so that runs/ is what the test left there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=SCRIPTS[:2])
def ppo(request, monkeypatch):
    """A script as a module; the probes take its kind of actions."""
    module = importlib.import_module(request.param)
    monkeypatch.setenv("PROBE_ACTIONS", "Box" if hasattr(module.Args, "initial_std") else "Discrete")
    return module


with_all_scripts = pytest.mark.parametrize("ppo", SCRIPTS, indirect=True)


def small(ppo, **flags):
    """Args of a run of 4 iterations."""
    env_id = "Breakout" if "atari" in ppo.__name__ else "probe_envs:Match-v0"
    run = {"env_id": env_id, "num_envs": 4, "num_steps": 16, "total_timesteps": 256, "eval_episodes": 2}
    if "atari" in ppo.__name__:
        run |= {"eval_episodes": 1, "threads": 1}
    return ppo.Args(**run | flags)


def train(ppo, args, folder="run"):
    """The agent that a training leaves, and the path of its checkpoint."""
    return ppo.train(args, Path(folder)), Path(folder, "checkpoint.pt")


def start(*command, **env):
    """A process of Python's, as a user starts it."""
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"} | env
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, *map(str, command)]
    process = subprocess.Popen(command, env=env, text=True, errors="replace", start_new_session=True, **pipes)
    started.append(process)
    return process


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    yield
    while started:
        started.pop().kill()


@pytest.fixture
def main(ppo, monkeypatch, capsys):
    """What the command line answers to a mistake: (exit status, stderr)."""

    def call(*flags):
        monkeypatch.setattr("sys.argv", [ppo.__file__, *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            ppo.main()
        err, code = capsys.readouterr().err, stop.value.code
        return (1, err + code) if isinstance(code, str) else (code, err)  # as Python's exit does

    return call


def checkpoint():
    """The path of the only run's checkpoint."""
    (path,) = Path("runs").glob("*/checkpoint.pt")
    return path
