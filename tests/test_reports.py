"""What users of other implementations reported: each case, and its right outcome."""

import contextlib
import gc
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import probe_envs
import pytest
import torch
from conftest import checkpoint, small, with_all_scripts
from test_training import modes, train, weights

import ppo_atari
import ppo_continuous


@pytest.mark.parametrize("offset, scale", [(100, 1), (0, 1e-6)])
def test_what_distinguishes_rewards_survives_their_offset_and_scale(ppo, monkeypatch, offset, scale):
    outcome = probe_envs.Match.outcome
    shifted = lambda self, action: (offset + scale * outcome(self, action)[0], True, False)  # noqa: E731
    monkeypatch.setattr(probe_envs.Match, "outcome", shifted)
    left, right = modes(train(ppo, "Match", norm_reward=True), -1.0, 1.0)
    assert left < -0.3 and right > 0.3


@with_all_scripts
def test_values_from_python_are_checked_and_kept_as_plain_ones(ppo):
    """A checkpoint holds no others."""
    given = {"learning_rate": np.logspace(-3, -2, 2)[0], "gamma": np.float32(0.5), "target_kl": np.float64(1)}
    given |= {"seed": np.int64(3), "num_envs": 4.0, "norm_adv": np.bool_(False), "device": np.str_("cpu")}
    args = small(ppo, **given)
    assert [type(getattr(args, name)) for name in given] == [float, float, float, int, int, bool, str]
    assert {name: getattr(args, name) for name in given} == given
    ppo.train(args)
    assert ppo.load_checkpoint(checkpoint())["args"] == args
    wrong = {"num_steps": 2.5, "learning_rate": "fast", "anneal_lr": 2, "learning_rat": 1e-3}
    for name, value in wrong.items():
        with pytest.raises((ValueError, TypeError), match=name):
            small(ppo, **{name: value})
    with pytest.raises(ppo.UserError, match=r"gamma 1.5.* at most 1"):
        ppo.train(small(ppo, gamma=np.float64(1.5)))


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integer_actions_are_integers_of_their_whole_range(monkeypatch, dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    monkeypatch.setattr(probe_envs.Echo, "action_space", gym.spaces.Box(low, high, (1,), dtype))
    monkeypatch.setattr(probe_envs.Echo, "obs", lambda self: np.zeros((1, 3)))
    envs = ppo_continuous.make_envs(ppo_continuous.Args("probe_envs:Echo-v0"), 6)
    envs.reset()
    actions = np.array([[-9.0], [-1.0], [0.0], [0.6], [1.0], [9.0]], dtype=np.float32)
    envs.step(actions)
    sent = [env.unwrapped.last for env in envs.unwrapped.envs]
    for action, got in zip(actions.clip(-1, 1).astype(float), sent):
        assert got.dtype == dtype and probe_envs.Echo.action_space.contains(got)
        exact = int(low) + (int(high) - int(low)) * (action.item() + 1) / 2
        assert abs(int(got.item()) - exact) <= 0.5 + 1e-9 + 1e-15 * abs(exact)


@pytest.mark.parametrize("norm_obs", [False, True])
def test_observations_of_any_type_are_seen_alike(ppo, monkeypatch, norm_obs):
    def trained(dtype):
        monkeypatch.setattr(probe_envs.Match, "observation_space", gym.spaces.Box(0, 1, (2, 1), dtype))
        obs = lambda self: np.full((2, 1), getattr(self, "sign", 1) > 0, dtype)  # noqa: E731
        monkeypatch.setattr(probe_envs.Match, "obs", obs)
        return weights(ppo, total_timesteps=128, norm_obs=norm_obs)

    expected = trained("float64")
    for dtype in [bool, *INTEGERS, "float16", "float32"]:
        assert torch.equal(trained(dtype), expected), dtype


PLACES = {"constructor": {}, "reset": {}, "step": {}, "render": {"capture_video": True}, "": {"num_envs": 1}}
PLACES |= {"space": {"env_id": "probe_envs:DictObs-v0"}, "checkpoint": {"env_id": "probe_envs:Ragged-v0"}}


@pytest.mark.parametrize("where", PLACES)
def test_what_is_opened_is_closed_once_after_errors_too(ppo, monkeypatch, where):
    """With --num-envs 1 never two at a time: there may be one robot, or one licence."""
    ppo.train(small(ppo))
    args = small(ppo, resume=checkpoint(), total_timesteps=320, **PLACES[where])
    opened, closed, init = [], [], probe_envs.Probe.__init__

    def fail(self, *_, **__):
        raise RuntimeError("the robot fell")

    def spy(self, **options):
        init(self, **options)
        if where == "constructor" and len(opened) == 2:
            fail(self)
        self.of_this_test = opened.append(id(self)) or opened
        assert len(opened) - len(closed) <= args.num_envs

    def close(self):
        if getattr(self, "of_this_test", None) is opened:
            closed.append(id(self))

    monkeypatch.setattr(probe_envs.Probe, "__init__", spy)
    monkeypatch.setattr(probe_envs.Probe, "close", close)
    if where in ("reset", "step", "render"):
        monkeypatch.setattr(probe_envs.Match, where, fail)
    for run in (lambda: ppo.train(args), lambda: ppo.evaluate(checkpoint(), args)):
        with contextlib.suppress(RuntimeError, ppo.UserError):
            run()
        gc.collect()
        assert sorted(opened) == sorted(closed) and opened


@pytest.mark.parametrize("flag", ["--total-timesteps=256", "--evaluate"])
def test_a_film_that_cannot_be_made_is_refused_at_the_start(ppo, monkeypatch, main, capsys, flag):
    def render(self):
        raise RuntimeError("no display")

    ppo.train(small(ppo))
    path, before = checkpoint(), [capsys.readouterr(), sorted(Path().rglob("*"))][1]
    monkeypatch.setattr(probe_envs.Probe, "render", render)
    flags = [flag, path] if flag == "--evaluate" else [flag, "--num-envs=2", "--num-steps=8"]
    code, err = main("--env-id=probe_envs:Match-v0", "--num-minibatches=2", *flags, "--capture-video")
    assert code == 2 and re.fullmatch(r"error: --capture-video .*MUJOCO_GL=egl\): no display\n", err), err
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize("name", ["PongNoFrameskip-v4", "PongDeterministic-v4", "ALE/Pong-v5", "Pong-v0"])
def test_every_name_of_a_game_plays_it(name):
    envs = ppo_atari.make_envs(ppo_atari.Args(name), 1)
    assert envs.unwrapped.spec.id == "ALE/Pong-v5" and envs.single_action_space.n == 6


@with_all_scripts
@pytest.mark.parametrize("name, value", [("WORLD_SIZE", "2"), ("RANK", "1"), ("RANK", "")])
def test_what_another_program_left_in_the_shell_starts_no_second_process(ppo, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    ppo.Run(small(ppo)).close()
    assert len(list(Path("runs").iterdir())) == 1


def test_what_never_ends_is_said(capsys):
    args = small(ppo_continuous, env_id="probe_envs:Echo-v0", eval_episodes=1)
    ppo_continuous.train(args)
    out, err = capsys.readouterr()
    assert "no episode ended yet" in err and "evaluation: 0 episodes in 30000 steps\n" in out


def test_small_returns_can_be_read(ppo, monkeypatch, capsys):
    monkeypatch.setattr(probe_envs.Match, "outcome", lambda self, action: (1.5e-6, True, False))
    ppo.train(small(ppo))
    out, err = capsys.readouterr()
    assert "evaluation: 2 episodes, return 1.5e-06, std 0" in out and "return 1.5e-06" in err


@pytest.mark.parametrize("width, warned", [(50, False), (60, True)])
def test_images_for_an_mlp_cost_one_line_of_warning(ppo, monkeypatch, capsys, width, warned):
    monkeypatch.setattr(probe_envs.Match, "observation_space", gym.spaces.Box(0, 1, (width, width), np.uint8))
    monkeypatch.setattr(probe_envs.Match, "obs", lambda self: np.zeros((width, width), np.uint8))
    ppo.train(small(ppo))
    assert capsys.readouterr().err.count("warning: an MLP over 3,600 numbers, not a CNN\n") == warned
