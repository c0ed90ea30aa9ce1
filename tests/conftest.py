"""What several tests share: the scripts, small runs of them, and processes that end with their test."""

import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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
    """What the command line answers: the exit status, and stdout, or after a mistake stderr."""

    def call(*flags):
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", [ppo.__file__, *map(str, flags)])
        try:
            ppo.main()
        except SystemExit as stop:
            err, code = capsys.readouterr().err, stop.code
            return (1, err + code) if isinstance(code, str) else (code, err)  # as Python's exit does
        return 0, capsys.readouterr().out

    return call


@pytest.fixture
def record(monkeypatch):
    """record(owner, name): a list of the function's calls from now on, with their args, kwargs, result."""

    def patch(owner, name, copied=False):
        calls, function = [], getattr(owner, name)

        def recorded(*args, **kwargs):
            kept = copy.deepcopy(args) if copied else args  # as they were before the call
            calls.append(SimpleNamespace(args=kept, kwargs=kwargs, result=function(*args, **kwargs)))
            return calls[-1].result

        monkeypatch.setattr(owner, name, recorded)
        return calls

    return patch


def checkpoint():
    """The path of the only run's checkpoint."""
    (path,) = Path("runs").glob("*/checkpoint.pt")
    return path


def film(path):
    """The frames (T, H, W, 3) of a film."""
    imageio = pytest.importorskip("imageio")
    return np.stack([*iter(imageio.get_reader(path))])  # a reader's own length is infinite
