"""What users of other implementations reported: each case, and its right outcome."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import small, train, with_all_scripts
from probe_envs import Counter, Match
from test_training import learn, modes, weights
from torch import nn

import ppo_atari
import ppo_continuous
import ppo_discrete


@pytest.mark.parametrize("offset, scale", [(100, 1), (0, 1e-6)])
def test_what_distinguishes_rewards_survives_their_offset_and_scale(ppo, monkeypatch, offset, scale):
    outcome = Match.outcome
    shifted = lambda self, action: (offset + scale * outcome(self, action)[0], True, False)  # noqa: E731
    monkeypatch.setattr(Match, "outcome", shifted)
    left, right = modes(learn(ppo, "Match", norm_reward=True), -1.0, 1.0)
    assert left < -0.3 and right > 0.3


@with_all_scripts
def test_values_from_python_are_checked_and_kept_as_plain_ones(ppo):
    """A checkpoint holds no others."""
    given = {"learning_rate": np.logspace(-3, -2, 2)[0], "gamma": np.float32(0.5), "target_kl": np.float64(1)}
    given |= {"seed": np.int64(3), "num_envs": 4.0, "norm_adv": np.bool_(False), "device": np.str_("cpu")}
    args = small(ppo, **given)
    assert [type(getattr(args, name)) for name in given] == [float, float, float, int, int, bool, str]
    assert {name: getattr(args, name) for name in given} == given
    _, path = train(ppo, args)
    assert ppo.load_checkpoint(path)["args"] == args
    wrong = {"num_steps": 2.5, "learning_rate": "fast", "anneal_lr": 2, "learning_rat": 1e-3}
    for name, value in wrong.items():
        with pytest.raises((ValueError, TypeError), match=name):
            small(ppo, **{name: value})
    with pytest.raises(ValueError, match=r"gamma"):
        small(ppo, gamma=np.float64(1.5))


@pytest.mark.parametrize("norm_obs", [False, True])
def test_observations_of_any_type_are_seen_alike(ppo, monkeypatch, norm_obs):
    def trained(dtype):
        monkeypatch.setattr(Match, "observation_space", gym.spaces.Box(0, 1, (2, 1), dtype))
        obs = lambda self: np.full((2, 1), getattr(self, "sign", 1) > 0, dtype)  # noqa: E731
        monkeypatch.setattr(Match, "obs", obs)
        return weights(ppo, total_timesteps=128, norm_obs=norm_obs)

    expected = trained("float64")
    integers = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    for dtype in ["bool", *integers, "float16", "float32"]:
        assert torch.equal(trained(dtype), expected), dtype


@pytest.mark.parametrize("name", ["PongNoFrameskip-v4", "PongDeterministic-v4", "ALE/Pong-v5", "Pong-v0"])
def test_every_name_of_a_game_plays_it(name):
    envs = ppo_atari.make_envs(ppo_atari.Args(name), 1)
    assert envs.unwrapped.spec.id == "ALE/Pong-v5" and envs.single_action_space.n == 6


def test_what_never_ends_is_cut_off_and_marked(capsys, monkeypatch):
    args = small(ppo_continuous, env_id="probe_envs:Counter-v0", eval_episodes=1)
    _, path = train(ppo_continuous, args)
    monkeypatch.setattr(ppo_continuous, "tqdm", lambda steps, *_, **__: steps[:500])
    monkeypatch.setattr(Counter, "outcome", lambda self, action: (1.0, self.t == 300, False))
    assert ppo_continuous.evaluate(path, replace(args, eval_episodes=3)) == [301.0]
    monkeypatch.setattr(Counter, "outcome", lambda self, action: (1.0, False, False))
    assert ppo_continuous.evaluate(path, args) == []
    out = capsys.readouterr().out
    assert "evaluation: 1 of 3 episodes, mean return 301\n" in out and "evaluation: 0 of 1 episodes" in out


def test_ctrl_c_in_an_evaluation_prints_what_ended(ppo, monkeypatch, capsys):
    _, path = train(ppo, small(ppo))
    calls, step = [], Match.step

    def interrupted(self, action):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, action)

    monkeypatch.setattr(Match, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ppo.evaluate(path, small(ppo, eval_episodes=10))
    assert "evaluation: 3 of 10 episodes, mean return " in capsys.readouterr().out


def test_small_returns_can_be_read_and_are_printed_before_environments_close(ppo, monkeypatch, capsys):
    monkeypatch.setattr(Match, "outcome", lambda self, action: (1.5e-6, True, False))
    _, path = train(ppo, small(ppo))
    monkeypatch.setattr(Match, "close", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ppo.evaluate(path, small(ppo))
    out, err = capsys.readouterr()
    assert "evaluation: 2 of 2 episodes, mean return 1.5e-06\n" in out and "return 1.5e-06" in err


@pytest.mark.parametrize("wrap", [np.array, np.float32, lambda reward: np.array([reward]), torch.tensor])
def test_a_reward_is_one_number_however_it_is_wrapped(ppo, monkeypatch, wrap):
    outcome, expected = Match.outcome, weights(ppo, total_timesteps=128)
    monkeypatch.setattr(Match, "outcome", lambda self, a: (wrap(outcome(self, a)[0]), True, False))
    assert torch.allclose(weights(ppo, total_timesteps=128), expected, atol=1e-5)


def test_an_observation_of_no_dimensions_is_a_number(ppo, monkeypatch):
    expected, obs = weights(ppo, total_timesteps=128), Match.obs
    monkeypatch.setattr(Match, "observation_space", gym.spaces.Box(0, 1, (), np.float32))
    monkeypatch.setattr(Match, "obs", lambda self: obs(self)[0])
    assert torch.equal(weights(ppo, total_timesteps=128), expected)


def test_dropout_leaves_ratios_and_evaluations_as_they_are(ppo, monkeypatch, record):
    """Probabilities that two random networks give to one action have no ratio that means anything."""
    mlp, updates = ppo.mlp, record(ppo, "update")
    with_dropout = lambda *args, **kwargs: nn.Sequential(nn.Dropout(0.5), mlp(*args, **kwargs))  # noqa: E731
    monkeypatch.setattr(ppo, "mlp", with_dropout)
    _, path = train(ppo, small(ppo))
    assert len(updates) == 4 and all(abs(call.result[0]["approx_kl"]) < 1e-6 for call in updates)
    assert ppo.evaluate(path, small(ppo)) == ppo.evaluate(path, small(ppo))


def test_a_mask_that_is_ignored_is_named_with_what_heeds_it():
    with pytest.warns(UserWarning, match="ppo_masks_discrete"):
        ppo_discrete.make_envs(ppo_discrete.Args("Taxi-v4"), 2).reset(seed=1)
