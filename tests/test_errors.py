"""A user's mistake costs one line that says what to do, and exit status 2, and leaves nothing behind."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import checkpoint, small, start, with_all_scripts

MISTAKES = {
    "--num-envs 16 --num-steps 128 --num-minibatches 1500": r"2048: must be from 2 \* 1500 minibatches",
    "--num-envs 16 --num-steps 128 --total-timesteps 100": r"2048: must be .* to 100 timesteps",
    "--num-steps 1 --num-envs 1": r"num_envs \* num_steps = 1",
    "--gamma 1.5": r"gamma 1.5.* at most 1",
    "--gae-lambda nan": r"gae_lambda nan: must be 0 or more",
    "--clip-coef 0": r"clip_coef 0.0: must be more than 0",
    "--seed -1": r"seed -1: must be 0 or more",
    "--resume nothing.pt": r"cannot load nothing.pt: .*No such file",
    "--evaluate .": r"cannot load \.:",
    "--device nowhere": r"--device: .*nowhere",
}
ENVIRONMENTS = {
    ("ppo_continuous", "Pendulumm-v1"): r"Did you mean: `Pendulum`",
    ("ppo_continuous", "CartPole-v1"): r"CartPole-v1 has .*, not Box and bounded Box .*ppo_discrete.py",
    ("ppo_discrete", "Pendulum-v1"): r"Pendulum-v1 has .*, not Box and Discrete .*ppo_continuous.py",
    ("ppo_continuous", "probe_envs:DictObs-v0"): r"has Dict.*, not Box and bounded Box .*FlattenObservation",
    ("ppo_continuous", "probe_envs:Unbounded-v0"): r"has .*inf.*, not Box and bounded Box",
    ("ppo_discrete", "probe_envs:FromOne-v0"): r"start=1.*, not Box and Discrete from 0",
    ("ppo_discrete", "no_such_module:X-v0"): r"No module named 'no_such_module'",
    ("ppo_continuous", "Hopper-v3"): r"Hopper-v3: .*gymnasium-robotics",
    ("ppo_atari", "CartPole-v1"): r"CartPole-v1 is not an Atari game",
    ("ppo_discrete", "CartPole-v1 --vectorization vector_entry_point"): r"must be of AutoresetMode.SAME_STEP",
}


@pytest.mark.parametrize("flags", MISTAKES)
@with_all_scripts
def test_a_mistake_costs_one_line_and_leaves_nothing(ppo, main, flags):
    code, err = main(*flags.split())
    assert code == 2 and re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(MISTAKES[flags], err.strip()), err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("ppo, env_id", ENVIRONMENTS, indirect=["ppo"])
def test_an_environment_of_the_wrong_kind_is_told_where_to_go(ppo, main, env_id):
    code, err = main("--env-id", *env_id.split())
    assert code == 2 and re.fullmatch(r"error: [^\n]+\n", err) and not list(Path().iterdir())
    assert re.search(ENVIRONMENTS[ppo.__name__, env_id], err.strip()), err


def test_a_checkpoint_that_does_not_fit_or_is_cut_short_costs_one_line(ppo, main, capsys):
    ppo.train(small(ppo))
    capsys.readouterr()
    code, err = main("--evaluate", checkpoint(), "--env-id", "probe_envs:Ragged-v0")
    assert code == 2 and re.fullmatch(r"error: cannot load [^\n]* size mismatch [^\n]*\n", err), err
    Path("half.pt").write_bytes(checkpoint().read_bytes()[:2000])
    code, err = main("--resume", "half.pt")
    assert code == 2 and re.fullmatch(r"error: cannot load half.pt: [^\n]+\n", err), err


def test_given_flags_replace_those_of_a_checkpoint_and_the_others_stay(ppo, monkeypatch, capsys):
    """Also in a renamed copy of the script, and for evaluating."""
    ppo.train(small(ppo, gamma=0.8))
    flags = ["--resume", str(checkpoint()), "--total-timesteps", "384", "--gae-lambda", "0.5"]
    monkeypatch.setattr(sys, "argv", [ppo.__file__, *flags])
    ppo.main()
    args = torch.load(checkpoint(), weights_only=True)["args"]
    assert (args["gamma"], args["gae_lambda"], args["total_timesteps"]) == (0.8, 0.5, 384)
    printed = capsys.readouterr().out.splitlines()[-1]
    copy = Path("renamed.py")
    copy.write_text(Path(ppo.__file__).read_text())
    process = start(copy, "--evaluate", checkpoint())
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.splitlines() == [printed], err  # what the training printed


@pytest.mark.parametrize("where", ["Worst", "BrokenConstructor"])
def test_an_error_in_a_users_environment_keeps_its_traceback(ppo, where):
    with pytest.raises(ValueError, match="fell off") as error:
        ppo.train(small(ppo, env_id=f"probe_envs:{where}-v0", num_steps=1024, total_timesteps=4096))
    assert error.traceback[-1].path.name == "probe_envs.py" and not isinstance(error.value, ppo.UserError)


def test_weights_and_biases_that_cannot_start_stop_the_run_with_one_line(ppo, main, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, err = main("--track", "--env-id", "probe_envs:Match-v0")
    assert code == 2 and re.search(r"error: --track: [^\n]*wandb[^\n]*\n$", err) and not Path("runs").exists()


@pytest.mark.parametrize("ppo", ["ppo_discrete"], indirect=True)
def test_weights_and_biases_log_a_run(ppo, monkeypatch):
    """Offline, as without an account."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb")
    calls, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **settings: calls.append(settings) or init(**settings))
    ppo.train(small(ppo, track=True))
    assert calls[0]["name"] == checkpoint().parent.name and calls[0]["config"]["num_steps"] == 16
    assert list(Path("wandb").glob("offline-run-*"))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_ctrl_c_says_how_to_go_on(ppo, vectorization):
    """It reaches the processes of async, too; none of them shows a traceback."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    flags = ["--env-id", "probe_envs:Match-v0", "--num-envs", 2, "--vectorization", vectorization]
    process = start(ppo.__file__, *flags)
    while not list(Path("runs").glob("*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and f"checkpoint: {checkpoint()}" in out
    assert "interrupted; --resume goes on" in err and "Traceback" not in err
