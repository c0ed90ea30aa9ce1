"""Mistakes: each costs one line that says what to do, exit status 2, and leaves nothing behind."""

import re
from pathlib import Path

import pytest
import torch
from conftest import with_all_scripts

ppo = KIND = SMALL = None  # set by the fixture
pytestmark = [pytest.mark.usefixtures("script"), with_all_scripts]

MISTAKES = {
    "--num-envs 16 --num-minibatches 3": r"must cut num_envs·num_steps = 2048 into equal parts of 2 or more$",
    "--num-envs 16 --num-minibatches 1500": r"--num-minibatches 1500: must cut num_envs·num_steps = 2048 into",
    "--num-minibatches 0": r"--num-minibatches 0: must be in \(0, ",
    "--num-envs 16 --total-timesteps 100": r"--total-timesteps 100: must be num_envs·num_steps = 2048 or more",
    "--gamma 1.5": r"--gamma 1.5: must be in \[0, 1\]$",
    "--gamma nan": r"--gamma nan: must be in ",
    "--gae-lambda -0.1": r"--gae-lambda -0.1: must be in \[0, 1\]$",
    "--clip-coef 0": r"--clip-coef 0.0: must be in \(0, ",
    "--learning-rate 0": r"--learning-rate 0.0: must be in \(0, ",
    "--learning-rate inf": r"--learning-rate inf: must be in ",
    "--max-grad-norm -1": r"--max-grad-norm -1.0: must be in \(0, ",
    "--target-kl 0": r"--target-kl 0.0: must be in \(0, ",
    "--ent-coef nan": r"--ent-coef nan: must be in ",
    "--vf-coef -1": r"--vf-coef -1.0: must be in \[0, ",
    "--seed -1": r"--seed -1: must be in \[0, ",
    "--seed 9223372036854775808": r"must be in \[0, 9223372036854775807\]$",
    "--num-envs 0": r"--num-envs 0: must be in \(0, ",
    "--num-steps 0": r"--num-steps 0: must be in \(0, ",
    "--num-steps 1 --num-envs 1": r"must cut num_envs·num_steps = 1 into",
    "--update-epochs 0": r"--update-epochs 0: must be in \(0, ",
    "--eval-episodes 0": r"--eval-episodes 0: must be in \(0, ",
    "--checkpoint-every 0": r"--checkpoint-every 0: must be in \(0, ",
    "--threads 0": r"--threads 0: must be in \(0, ",
    "--device nowhere": r"--device nowhere",
    "--device cuda:99": r"--device cuda:99",
    "--resume nothing.pt": r"cannot load nothing.pt: .*No such file",
    "--evaluate nothing.pt": r"cannot load nothing.pt: .*No such file",
    "--evaluate .": r"cannot load \.:",
}

OF_ONE_SCRIPT = {
    ("ppo_continuous", "Pendulumm-v1"): r"Pendulumm.*doesn't exist. Did you mean: `Pendulum`",
    ("ppo_discrete", "CartPool-v1"): r"CartPool.*doesn't exist. Did you mean: `CartPole`",
    ("ppo_discrete", "ale_py:ALE/Pong-v5"): r"ale_py:ALE/Pong-v5 is an Atari game: use ppo_atari.py$",
    ("ppo_continuous", "probe_envs:DictObs-v0"): r"needs Box observations .* not Dict",
    ("ppo_discrete", "probe_envs:DictObs-v0"): r"needs Box observations .* not Dict",
    ("ppo_continuous", "probe_envs:NoRender-v0 --capture-video"): r"needs moviepy .*NoRender-v0 to render rgb_array",
    ("ppo_discrete", "probe_envs:NoRender-v0 --capture-video"): r"needs moviepy .*NoRender-v0 to render rgb_array",
    ("ppo_continuous", "CartPole-v1"): r"CartPole-v1 has Discrete actions: use ppo_discrete.py$",
    ("ppo_continuous", "probe_envs:DiscreteActions-v0"): r"has Discrete actions: use ppo_discrete.py$",
    ("ppo_continuous", "probe_envs:Unbounded-v0"): r"needs .* bounded Box actions here, not .*inf",
    ("ppo_discrete", "Pendulum-v1"): r"Pendulum-v1 has continuous actions: use ppo_continuous.py$",
    ("ppo_discrete", "probe_envs:Unbounded-v0"): r"has continuous actions: use ppo_continuous.py$",
    ("ppo_discrete", "probe_envs:FromOne-v0"): r"needs .* Discrete actions from 0, not .*start=1",
    ("ppo_continuous", "no_such_module:X-v0"): r"No module named 'no_such_module'",
    ("ppo_discrete", "no_such_module:X-v0"): r"No module named 'no_such_module'",
    ("ppo_continuous", ":X"): r"--env-id :X: Empty module name",
    ("ppo_discrete", ":X"): r"--env-id :X: Empty module name",
    ("ppo_atari", "no_such_module:X-v0"): r"no_such_module:X-v0 is not an Atari game",
    ("ppo_atari", "CartPole-v1"): r"CartPole-v1 is not an Atari game: use ppo_continuous.py or ppo_discrete.py$",
    ("ppo_atari", "Pendulum-v1"): r"Pendulum-v1 is not an Atari game: use",
    ("ppo_atari", "probe_envs:Unbounded-v0"): r"is not an Atari game: use",
    ("ppo_atari", "Breakouf"): r"Did you mean: `Breakout`",
    ("ppo_atari", "breakout"): r"Did you mean: `Breakout`",
    ("ppo_atari", "ALE/Pung-v5"): r"Did you mean: `Pong`",
    ("ppo_atari", "BreakoutNoFrameskip-v4"): r"Breakout",
}


@pytest.fixture
def main(monkeypatch, capsys):
    """What the command line answers: (exit status, stderr)."""

    def call(*flags):
        monkeypatch.setattr("sys.argv", [ppo.__file__, *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            ppo.main()
        return stop.value.code, capsys.readouterr().err

    return call


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_mistake_costs_one_line_and_leaves_nothing(main, flags):
    code, err = main(*flags.split())
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", err), err
    assert re.search(MISTAKES[flags], err.strip()), err
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name, env_id", OF_ONE_SCRIPT)
def test_an_environment_of_the_wrong_kind_is_told_where_to_go(main, name, env_id):
    if ppo.__name__ == name:
        code, err = main("--env-id", *env_id.split())
        assert code == 2 and re.fullmatch(r"error: [^\n]+\n", err) and not list(Path().iterdir())
        assert re.search(OF_ONE_SCRIPT[name, env_id], err.strip()), err


def test_from_python_a_mistake_is_a_value_error():
    for flags in ({"num_minibatches": 3}, {"gamma": 2.0}, {"env_id": "nothing-v0"}, {"resume": "nothing.pt"}):
        with pytest.raises(ValueError):
            ppo.train(ppo.Args(**flags))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    "flags", [{"clip_coef": float("inf")}, {"gamma": 0.0, "gae_lambda": 1.0}, {"num_minibatches": 1}]
)
def test_what_is_at_the_edge_is_allowed(flags):
    ppo.check(ppo.Args(**flags))


def test_a_missing_compiler_or_film_maker_is_named(main, monkeypatch, capsys):
    monkeypatch.setattr(ppo.shutil, "which", lambda name: None)
    code, err = main("--compile")
    assert code == 2 and "C++ compiler" in err
    ppo.train(ppo.Args(**SMALL))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"args": checkpoint["args"] | {"compile": True}}, path)
    monkeypatch.setattr("sys.argv", [ppo.__file__, "--evaluate", str(path)])
    ppo.main()  # evaluating needs no compiler
    capsys.readouterr()
    monkeypatch.setitem(__import__("sys").modules, "moviepy", None)
    code, err = main("--capture-video")
    assert code == 2 and "moviepy" in err and err.count("\n") == 1


def test_checkpoints_that_are_none(main, capsys):
    ppo.train(ppo.Args(**SMALL | {"total_timesteps": 64, "eval_episodes": 1}))
    (path,) = Path("runs").glob("*/checkpoint.pt")
    whole = torch.load(path, weights_only=True)
    capsys.readouterr()
    Path("truncated.pt").write_bytes(path.read_bytes()[:1000])
    Path("empty.pt").write_bytes(b"")
    Path("text.pt").write_text("hello")
    torch.save([1, 2], "list.pt")
    torch.save({"script": ppo.__name__, "args": ppo.Args()}, "object.pt")  # would need code to load
    torch.save(whole | {"script": "ppo_other"}, "other.pt")
    torch.save(whole | {"args": whole["args"] | {"old_flag": 1}}, "older.pt")
    reasons = {"truncated": "", "empty": "", "text": "", "list": "", "object": "", "older": "old_flag"}
    reasons["other"] = r"it was written by ppo_other.py: use that script"
    for flag in ("--evaluate", "--resume"):
        for name, reason in reasons.items():
            code, err = main(flag, f"{name}.pt")
            assert code == 2 and re.fullmatch(rf"error: cannot load {name}.pt: .+\n", err), err
            assert reason in err
        code, err = main(flag, path, "--env-id", KIND.other)
        assert code == 2 and "size mismatch" in err and err.count("\n") == 1
    assert len(list(Path("runs").iterdir())) == 1
