"""benchmarks/envpool_envs.py, against Gymnasium's own environments."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import checkpoint, small

import ppo_discrete

pytest.importorskip("envpool", reason="envpool is not installed")
import benchmarks.envpool_envs  # noqa: F401

# How many positions are not observed, and are, and how closely observations agree.
TASKS = {"HalfCheetah": (1, 8, 1e-5), "Hopper": (1, 5, 1e-5), "Walker2d": (1, 8, 1e-5), "Ant": (2, 13, 1e-5)}
TASKS |= {"Humanoid": (2, 22, 1e-3)}


@pytest.mark.parametrize("name", TASKS)
def test_the_physics_and_rewards_are_gymnasiums(name):
    hidden, shown, close = TASKS[name]
    ours, theirs = gym.make_vec(f"EnvPool/{name}-v5", 2), gym.make(f"{name}-v5").unwrapped
    rng, (obs, _) = np.random.default_rng(0), ours.reset(seed=[3, 4])
    theirs.reset()
    velocities = slice(shown, shown + theirs.model.nv)
    theirs.set_state(np.concatenate([np.zeros(hidden), obs[0, :shown]]), obs[0, velocities])
    for _ in range(20):
        actions = rng.uniform(-0.4, 0.4, ours.action_space.shape)
        obs, rewards, terminated, _, info = ours.step(actions)
        expected, reward, end, *_ = theirs.step(actions[0])
        columns = slice(velocities.stop if name == "Humanoid" else None)
        got = info["final_obs"][0] if terminated[0] else obs[0]
        np.testing.assert_allclose(got[columns], expected[columns], rtol=close, atol=close)
        assert rewards[0] == pytest.approx(reward, rel=close, abs=close) and terminated[0] == end
        if end:
            break


def cartpole(state, action):
    """The next observation and whether it is an end, by Gymnasium's environment."""
    env = gym.make("CartPole-v1").unwrapped
    env.reset()
    env.state = tuple(state.astype(float))
    obs, _, terminated, *_ = env.step(int(action))
    return obs, terminated


@pytest.mark.parametrize("limit", [9, 500])
def test_every_row_is_a_real_transition_and_an_end_is_an_end(limit):
    """Of 16 environments, several end in one step: by falling, by time, and with limit 9 by both."""
    envs = gym.make_vec("EnvPool/CartPole-v1", 16, max_episode_steps=limit)
    ends, age, (obs, _) = [], np.zeros(16, dtype=int), envs.reset(seed=7)
    for _ in range(60):
        actions = (obs[:, 2] > 0).astype(int) if limit == 500 else np.ones(16, int)
        before, age = obs, age + 1
        obs, _, terminated, truncated, info = envs.step(actions)
        ended = terminated | truncated
        for n in range(16):
            expected, end = cartpole(before[n], actions[n])
            reached = info["final_obs"][n] if ended[n] else obs[n]
            np.testing.assert_allclose(reached, expected, rtol=1e-4, atol=1e-5)
            assert terminated[n] == end and truncated[n] == (age[n] == limit)
            assert not ended[n] or np.abs(obs[n]).max() <= 0.05  # a first observation
        age[ended] = 0
        ends.append([ended.sum(), terminated.sum(), truncated.sum(), (terminated & truncated).sum()])
    assert (np.max(ends, 0) > [1, 0, 0, 0]).all() if limit == 9 else np.max(ends, 0)[1] > 1


def test_seeds_reach_the_environments():
    envs = gym.make_vec("EnvPool/HalfCheetah-v5", 3)
    first, again, other = (envs.reset(seed=seed)[0] for seed in (1, [1, 2, 3], 2))
    assert (first == again).all() and (first[1:] == other[:2]).all()
    assert len(np.unique(first[:, 0])) == 3 and (envs.reset()[0] != first).any()


def test_what_cannot_be_served_costs_one_line():
    with pytest.raises(gym.error.Error, match="EnvPool/CheetahRun-v1 has observations of Dict"):
        gym.make_vec("EnvPool/CheetahRun-v1", 1)
    with pytest.raises(gym.error.Error, match="cannot render"):
        gym.make_vec("EnvPool/CartPole-v1", 1, render_mode="rgb_array")
    for wrong in (2**31, [1, 2], -1):
        with pytest.raises(ValueError, match=r"1 seeds from 0 to 2\^31 - 1"):
            gym.make_vec("EnvPool/CartPole-v1", 1).reset(seed=wrong)


def test_a_script_trains_on_it():
    env_id = "benchmarks.envpool_envs:EnvPool/CartPole-v1"
    args = small(ppo_discrete, env_id=env_id, vectorization="vector_entry_point")
    ppo_discrete.train(args)
    assert ppo_discrete.evaluate(checkpoint(), args) == ppo_discrete.evaluate(checkpoint(), args)
    with pytest.raises(ppo_discrete.UserError, match="EnvPool/CartPole-v1"):
        ppo_discrete.train(small(ppo_discrete, env_id=env_id, capture_video=True))
