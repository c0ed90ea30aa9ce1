"""Environments, users and machines at their worst: nothing is lost, and what went wrong is said."""

import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import start, with_all_scripts

ppo = KIND = SMALL = None  # set by the fixture
pytestmark = pytest.mark.usefixtures("script")
ENDLESS = ("--num-envs=2", "--num-steps=16", "--num-minibatches=1", "--total-timesteps=100000000")


def begin(*flags, **kwargs):
    """A run that has left its first checkpoint, and that checkpoint's path."""
    process = start(*ENDLESS, "--env-id=probe_envs:Truncated-v0", *flags, script=ppo.__file__, **kwargs)
    while not (found := list(Path("runs").glob("*/checkpoint.pt"))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process, found[0]


@pytest.fixture
def run_script():
    def run(*flags, **kwargs):
        process = start(*flags, script=ppo.__file__, **kwargs)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    return run


def rollout_of(env_id, **flags):
    args = ppo.Args(env_id, num_envs=3, num_steps=20, num_minibatches=1, **flags)
    envs = ppo.make_envs(args)
    torch.manual_seed(1)
    agent = ppo.Agent(envs, args)
    rollout, *_ = ppo.collect(envs, agent, envs.reset(seed=[1, 2, 3])[0], args, 0)
    envs.close()
    return rollout


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_environment_that_returns_the_same_array_each_step_is_collected_like_any_other(vectorization):
    fresh, same = rollout_of("probe_envs:Ragged-v0"), rollout_of("probe_envs:Same-v0", vectorization=vectorization)
    assert fresh.done.any() and not fresh.terminated[fresh.done].all()
    for one, other in zip(fresh, same):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_environments_in_processes_of_their_own_train_to_the_same_bits():
    flags = SMALL | {"env_id": "probe_envs:Ragged-v0"}
    one, other = (ppo.train(ppo.Args(**flags, vectorization=name)).state_dict() for name in ("sync", "async"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_evaluation_of_what_never_ends_ends(monkeypatch, capsys):
    monkeypatch.setattr(ppo, "range", lambda n: range(n // 100), raising=False)  # 100,000 steps would take a while
    args = ppo.Args("probe_envs:Endless-v0", eval_episodes=1)
    assert ppo.evaluate(ppo.Agent(ppo.make_envs(args, 1), args), args, Path()) == [1000]
    assert capsys.readouterr().out.endswith("1 episodes of probe_envs:Endless-v0, 1 cut off after 100,000 steps\n")


WRONG = {
    "Raises": "ValueError: the robot fell off the table",
    "NanStart": "error: an observation is not finite at step 0\n",
    "Dies": "error: lost another process of this run",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_goes_wrong_in_an_environment_is_said_and_the_last_checkpoint_stays(run_script, name):
    mode = "async" if name == "Dies" else "sync"
    code, _, err = run_script(*ENDLESS, f"--env-id=probe_envs:{name}-v0", f"--vectorization={mode}")
    assert code == 1 and WRONG[name] in err, err
    assert "Traceback" not in err or name != "NanStart", err  # others show where in the user's own code, or gym's close
    assert len(list(Path("runs").glob("*/checkpoint.pt"))) == (name != "NanStart")


def test_ctrl_c_in_a_terminal_reaches_the_environments_too_and_they_go_on():
    process, path = begin("--vectorization=async", group=True)
    before = path.stat().st_mtime_ns
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert path.stat().st_mtime_ns > before


def test_ctrl_c_that_also_ends_the_reader_of_our_output_still_saves():
    process, path = begin()
    before = path.stat().st_mtime_ns
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130 and path.stat().st_mtime_ns > before


def test_a_second_signal_of_another_kind_stops_at_once():
    process = start("--env-id=probe_envs:Truncated-v0", "--num-steps=10000000", "--total-timesteps=160000000",
                    script=ppo.__file__)  # fmt: skip
    while not list(Path("runs").glob("*/events*")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None  # the iteration takes many minutes
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM


def test_a_run_folder_that_vanishes_ends_the_run_with_a_line():
    process, path = begin()
    shutil.rmtree(path.parent, ignore_errors=True)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "error: [Errno 2] No such file" in err  # beside what TensorBoard's thread prints


def test_a_run_folder_that_cannot_be_made_costs_one_line(run_script):
    Path("runs").write_text("not a folder")
    code, _, err = run_script("--env-id=probe_envs:Match-v0")
    assert code == 1 and err.splitlines()[-1].startswith("error: ") and "Traceback" not in err


@with_all_scripts
def test_a_checkpoint_that_would_run_code_is_refused():
    class Trap:
        def __reduce__(self):
            return Path.touch, (Path("trapped"),)

    for save in (torch.save, lambda trap, path: Path(path).write_bytes(pickle.dumps(trap))):
        save({"script": ppo.__name__, "args": Trap()}, "trap.pt")
        with pytest.raises(ppo.UserError, match=r"cannot load trap\.pt"):
            ppo.load_checkpoint("trap.pt")
    assert not Path("trapped").exists()


def test_a_home_that_nobody_can_write_to_is_not_needed(run_script):
    code, _, err = run_script("--env-id=probe_envs:Match-v0", "--total-timesteps=4096", env={"HOME": "/proc/nobody"})
    assert code == 0, err
