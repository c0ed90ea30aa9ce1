"""A user's mistake costs one line that says what to do, and leaves nothing behind."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, checkpoint, small, start, train, with_all_scripts

FLAGS = {  # what tyro's box says
    "--gamma 1.5": r"gamma.*less than or equal to 1",
    "--gae-lambda nan": r"gae_lambda",
    "--clip-coef 0": r"clip_coef.*greater than 0",
    "--seed -1": r"seed.*greater than or equal to 0",
    "--seed 18446744073709551616": r"seed.*less than",
    "--learning-rate inf": r"learning_rate.*finite",
    "--num-steps 2.5": r"num-steps",
    "--resume nothing.pt": r"resume.*not point to a file",
    "--evaluate .": r"evaluate.*not point to a file",
    "--learning-rat 1": r"learning-rate",
}
BATCHES = {
    "--num-envs 16 --num-steps 128 --num-minibatches 1500": r"2048.*2 \* num_minibatches",
    "--num-envs 16 --num-steps 128 --total-timesteps 100": r"2048.*100 steps left",
    "--num-steps 1 --num-envs 1": r"2 \* num_minibatches",
}
MISTAKES = {(script, flags): BATCHES[flags] for script in SCRIPTS for flags in BATCHES}
MISTAKES |= {
    ("ppo_continuous", "--env-id=Pendulumm-v1"): r"Did you mean: `Pendulum`",
    ("ppo_continuous", "--env-id=CartPole-v1"): r"actions < 1e6 \(or ppo_discrete.py\), not Discrete\(2\)",
    ("ppo_discrete", "--env-id=Pendulum-v1"): r"Discrete actions from 0 \(or ppo_continuous.py.*not Box",
    ("ppo_continuous", "--env-id=probe_envs:Unbounded-v0"): r"actions < 1e6.*not Box\(-inf",
    ("ppo_continuous", "--env-id=probe_envs:Huge-v0"): r"actions < 1e6.*not Box\((-1e\+08|-100000000)",
    ("ppo_continuous", "--env-id=probe_envs:Integers-v0"): r"float actions.*int64",
    ("ppo_discrete", "--env-id=probe_envs:FromOne-v0"): r"Discrete actions from 0.*start=1",
    ("ppo_discrete", "--env-id=probe_envs:MultiDiscrete-v0"): r"variants/ppo_masks.*Discrete\(\[2 2\]\), Box",
    ("ppo_discrete", "--env-id=probe_envs:GraphObs-v0"): r"needs vectors.*Graph",
    ("ppo_discrete", "--env-id=probe_envs:SequenceObs-v0"): r"needs vectors.*Sequence",
    ("ppo_discrete", "--env-id=probe_envs:OwnSpaceObs-v0"): r"no numbers: Dict\(.*Own.*write a wrapper",
    ("ppo_atari", "--env-id=CartPole-v1"): r"CartPole",
}


@pytest.mark.parametrize("flags", FLAGS)
@with_all_scripts
def test_a_flag_of_a_wrong_type_or_range_costs_a_box(ppo, main, flags):
    code, err = main(*flags.split())
    text = " ".join(err.replace("│", " ").split())
    assert code == 2 and re.search(FLAGS[flags], text) and "Traceback" not in err, err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("ppo, flags", MISTAKES, indirect=["ppo"])
def test_flags_or_an_environment_that_do_not_fit_cost_one_line(ppo, main, flags):
    code, err = main(*flags.split())
    line = err.splitlines()[-1]  # MuJoCo 4 warns of HalfCheetah's file before
    assert code == 1 and re.fullmatch(rf"error: .*{MISTAKES[ppo.__name__, flags]}.*", line), err
    assert "Traceback" not in err and not list(Path().iterdir())


@pytest.mark.parametrize("what", ["other environment", "cut short", "no checkpoint", "other script"])
def test_a_checkpoint_that_does_not_fit_costs_one_line_and_leaves_nothing(ppo, main, what):
    _, path = train(ppo, small(ppo))
    flags = ["--env-id=probe_envs:Ragged-v0"] if what == "other environment" else []
    if what == "cut short":
        path.write_bytes(path.read_bytes()[:2000])
    if what == "no checkpoint":
        path.write_text("notes")
    if what == "other script":
        saved = torch.load(path, weights_only=True)
        torch.save(saved | {"args": saved["args"] | {"protocol": "classic"}}, path)
    before = sorted(Path().rglob("*"))
    for flag in ("--evaluate", "--resume"):
        code, err = main(flag, path, "--total-timesteps=512", *flags)
        assert code == 1 and re.fullmatch(r"error: [^\n]*run/checkpoint.pt does not fit [^\n]+", err), err
    assert sorted(Path().rglob("*")) == before


def test_resuming_a_finished_run_says_that_no_steps_are_left(ppo, main):
    _, path = train(ppo, small(ppo))
    before = sorted(Path().rglob("*"))
    code, err = main("--resume", path)
    assert code == 1 and re.fullmatch(r"error: [^\n]*to 0 steps left", err), err
    assert sorted(Path().rglob("*")) == before


def test_given_flags_replace_those_of_a_checkpoint_and_the_others_stay(ppo, main):
    _, path = train(ppo, small(ppo, gamma=0.8, env_kwargs={"speed": 3}))
    state = torch.load(path, weights_only=True)
    torch.save(state | {"args": state["args"] | {"device": "cuda"}}, path)  # of another machine
    _, trained = main("--resume", path, "--total-timesteps", 384, "--gae-lambda", 0.5)
    args = torch.load(checkpoint(), weights_only=True)["args"]
    assert (
        args | {"gamma": 0.8, "gae_lambda": 0.5, "total_timesteps": 384, "env_kwargs": {"speed": 3}} == args
    )
    assert main("--evaluate", checkpoint())[1].splitlines()[-1] == trained.splitlines()[-1]


@pytest.mark.parametrize("where", ["Worst", "BrokenConstructor"])
def test_an_error_in_a_users_environment_keeps_its_traceback(ppo, where):
    with pytest.raises(ValueError, match="fell off") as error:
        train(ppo, small(ppo, env_id=f"probe_envs:{where}-v0"))
    assert error.traceback[-1].path.name == "probe_envs.py"


def main_stops_after_64_steps(main, env_id):
    """The exit status and message of a run of two batches whose checkpoint is of the first, and whole."""
    flags = ["--num-envs=4", "--num-steps=16", "--total-timesteps=128", "--target-kl=None"]
    answer = main(f"--env-id=probe_envs:{env_id}-v0", *flags)
    saved = torch.load(checkpoint(), weights_only=True)
    assert saved["global_step"] == 64 and all(value.isfinite().all() for value in saved["agent"].values())
    return answer


@pytest.mark.parametrize("env_id", ["Obs-nan", "Obs-inf", "Reward-nan", "Reward-inf"])
def test_what_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(ppo, main, env_id):
    code, err = main_stops_after_64_steps(main, env_id)  # what is not finite comes in the 20th step
    what = "observation" if "Obs" in env_id else "reward"
    assert code == 1 and re.search(rf"error: [^\n]*{what}[^\n]* (64|128) is not finite$", err), err


def test_a_loss_that_is_not_finite_is_not_saved(ppo, main, monkeypatch):
    ppo_loss, factors = ppo.ppo_loss, iter([1.0] * (2 * 80 - 1) + [float("nan")])  # in the very last step

    def broken(*args):
        loss, metrics = ppo_loss(*args)
        return loss * next(factors), metrics

    monkeypatch.setattr(ppo, "ppo_loss", broken)
    code, err = main_stops_after_64_steps(main, "Match")
    assert code == 1 and re.search(r"error: [^\n]*loss[^\n]* 128 is not finite$", err), err


def test_a_module_of_ones_own_is_found_where_the_command_was_typed(ppo):
    Path("mine.py").write_text(
        "import gymnasium, probe_envs\ngymnasium.register('Mine-v0', probe_envs.Match)\n"
    )
    flags = ["--env-id=mine:Mine-v0", "--num-envs=4", "--num-steps=16", "--total-timesteps=64"]
    out, err = start(ppo.__file__, *flags).communicate(timeout=60)
    assert "evaluation: 10 of 10 episodes" in out, err


@pytest.mark.parametrize("ppo", ["ppo_discrete"], indirect=True)
def test_weights_and_biases_log_a_run_each_and_finish_it(ppo, monkeypatch, record):
    """Offline, as without an account."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb")
    inits, expected = record(wandb, "init"), [("one", 16), ("other", 32)]
    for name, num_steps in expected:
        train(ppo, small(ppo, track=True, num_steps=num_steps), name)
    assert [(call.kwargs["name"], call.kwargs["config"]["num_steps"]) for call in inits] == expected
    first, second = (call.result for call in inits)
    assert first._is_finished and first.id != second.id
    assert len(list(Path("wandb").glob("offline-run-*"))) == 2
    wandb.finish()


BEFORE_THE_FIRST_CHECKPOINT = "--num-steps=10000"
AFTER_IT = ["--num-envs=2 --vectorization=sync", "--num-envs=2 --vectorization=async"]


@pytest.mark.parametrize("flags", [BEFORE_THE_FIRST_CHECKPOINT, *AFTER_IT])
def test_ctrl_c_shows_no_traceback_and_the_first_line_said_what_to_resume(ppo, flags):
    """It reaches the processes of async, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    process = start(ppo.__file__, "--env-id=probe_envs:Match-v0", *flags.split())
    while not list(Path("runs").glob("*/checkpoint.pt" if flags in AFTER_IT else "*/events*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    (folder,) = Path("runs").iterdir()
    assert out.splitlines()[0] == f"checkpoint: {folder.absolute() / 'checkpoint.pt'}"
