import functools
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent
settings.register_profile("short", max_examples=24, derandomize=True, deadline=None, database=None)
settings.register_profile("long", max_examples=1000, deadline=None, database=None)
settings.load_profile("short")  # --hypothesis-profile is read later, and wins
started = []  # processes of the test that runs


class Kind(NamedTuple):
    """What a script is tried with."""

    actions: str  # of the probes
    task: str  # a real environment
    small: str  # one for runs that end soon
    other: str  # one that takes another network


SCRIPTS = {
    "ppo_continuous": Kind("Box", "Pendulum-v1", "probe_envs:Match-v0", "probe_envs:Ragged-v0"),
    "ppo_discrete": Kind("Discrete", "CartPole-v1", "probe_envs:Match-v0", "probe_envs:Ragged-v0"),
    "ppo_atari": Kind("Discrete", "Breakout", "Breakout", "Pong"),
}
with_all_scripts = pytest.mark.parametrize("script", SCRIPTS, indirect=True)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, so that runs/ is what the test left there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["ppo_continuous", "ppo_discrete"])
def script(request, monkeypatch):
    """Runs a test with each script that takes the probes, or with_all_scripts: as ppo in the test's module, beside
    KIND, TASK, a real environment, and SMALL, the arguments of a run that ends soon."""
    module, kind = request.module, SCRIPTS[request.param]
    module.ppo, module.KIND, module.TASK = importlib.import_module(request.param), kind, kind.task
    module.SMALL = {"env_id": kind.small, "num_envs": 4, "num_steps": 16, "total_timesteps": 256}
    module.SMALL |= {"eval_episodes": 2, "threads": 1}
    monkeypatch.setenv("PROBE_ACTIONS", kind.actions)


def gae(ppo, rewards, values, next_values, terminated, done, gamma, gae_lambda):
    """compute_gae on arrays; it reads no more of a rollout than these."""
    nothing = None, None, None
    rollout = ppo.Rollout(*nothing, values, next_values, rewards, terminated, done)
    return ppo.compute_gae(rollout, gamma, gae_lambda)


def start(*flags, script, env=None, group=False):
    """The script in a process of its own, as a user starts it; in a group of its own, as a terminal would."""
    env = os.environ | {"PYTHONPATH": str(ROOT / "tests")} | (env or {})
    pipe = subprocess.PIPE
    command = [sys.executable, str(script), *map(str, flags)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": pipe, "stderr": pipe}
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
    process = subprocess.Popen(command, env=env, text=True, preexec_fn=heed, start_new_session=group, **pipes)
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
