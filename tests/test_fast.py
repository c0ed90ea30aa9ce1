"""variants/ppo_fast_continuous.py, against ppo_continuous.py and Gymnasium's own environments."""

import math
import sys
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import train
from torch.nn.utils import parameters_to_vector

import ppo_continuous as plain

pytest.importorskip("envpool", reason="envpool is not installed")
import ppo_fast_continuous as fast

SMALL = {"env_id": "InvertedPendulum-v5", "num_envs": 4, "num_steps": 16, "num_minibatches": 2}
SMALL |= {"total_timesteps": 192, "eval_episodes": 2}
# How many positions are not observed, and are, and how closely observations agree.
TASKS = {"HalfCheetah": (1, 8, 1e-5), "Hopper": (1, 5, 1e-5), "Walker2d": (1, 8, 1e-5), "Ant": (2, 13, 1e-5)}
TASKS |= {"Humanoid": (2, 22, 1e-3)}


class Still:
    """Environments in which nothing happens, with as many numbers as asked for."""

    def __init__(self, n_obs, n_actions):
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (n_obs,), np.float64)
        self.single_action_space = gym.spaces.Box(-1, 1, (n_actions,), np.float32)
        self.obs = np.random.default_rng(0).normal(3, 2, (4, n_obs))

    def step(self, actions):
        rewards, no = np.ones(4, np.float32), np.zeros(4, bool)
        return self.obs, rewards, no, no, self.obs[:0]


def make_agent(args, n_obs=5, n_actions=2):
    torch.manual_seed(1)
    agent = fast.Agent(Still(n_obs, n_actions), args).eval()
    agent.obs_stats.update(torch.randn(100, n_obs) * 3 + 2)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return agent


@pytest.mark.parametrize("clip_vloss, max_grad_norm, target_kl", [(False, 0.5, None), (True, 9.0, 0.05)])
def test_an_update_is_that_of_ppo_continuous(clip_vloss, max_grad_norm, target_kl):
    """Also the second and third one, with other clip ranges: what is compiled holds no stale number."""
    flags = {"clip_vloss": clip_vloss, "max_grad_norm": max_grad_norm, "target_kl": target_kl}
    args = fast.Args(num_minibatches=4, update_epochs=3, ent_coef=0.1, **flags)
    expected, agent = make_agent(args), make_agent(args)
    gradient = fast.compile_gradient(agent, args)
    optimizers = [
        torch.optim.Adam(parameters, 3e-3, eps=1e-5, fused=True)
        for parameters in (expected.parameters(), [fast.flatten_parameters(agent)])
    ]
    steps = []
    for clip_coef in (0.2, 0.02, 0.5):
        obs, actions = torch.randn(64, 5), torch.randn(64, 2)
        with torch.no_grad():
            policy, values = expected(obs)
            batch = fast.Batch(obs, actions, policy.log_prob(actions), values, *torch.randn(2, 64))
        torch.manual_seed(2)
        theirs = plain.update(expected, optimizers[0], batch, clip_coef, args)
        torch.manual_seed(2)
        of_fast = gradient, optimizers[1], batch._replace(obs=agent.preprocess(obs))
        ours = fast.update(*of_fast, clip_coef, args)
        steps.append(len(ours))
        torch.testing.assert_close(ours, theirs, rtol=5e-4, atol=5e-6)  # all metrics of each minibatch
        weights = [parameters_to_vector(module.parameters()) for module in (agent, expected)]
        torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-5)
    assert steps == [12, 12, 12] if target_kl is None else min(steps) < 12


@pytest.mark.parametrize("n_obs", [1, 17, 400])
@pytest.mark.parametrize("norm_obs", [True, False])
def test_numpys_actions_are_the_modules(n_obs, norm_obs):
    agent = make_agent(fast.Args(norm_obs=norm_obs), n_obs)
    obs = np.random.default_rng(2).normal(2, 4, (8, n_obs))
    with torch.no_grad():
        expected = agent(torch.as_tensor(obs))[0].mean
        np.testing.assert_allclose(fast.numpy_actor(agent)(obs), expected, rtol=1e-5, atol=2e-6)
        actor = fast.numpy_actor(agent)
        agent.actor[0].weight *= 2  # as an optimizer does, in place
        np.testing.assert_allclose(actor(obs), agent(torch.as_tensor(obs))[0].mean, rtol=1e-5, atol=2e-6)


def test_noise_has_its_std_and_is_independent():
    args = fast.Args(num_envs=4, num_steps=25_000)
    agent, envs = make_agent(args), Still(5, 2)
    rollout = fast.collect(envs, agent, torch.as_tensor(envs.obs), args)
    with torch.no_grad():
        policy, values = agent(rollout.obs.flatten(0, 1))
        log_probs = policy.log_prob(rollout.actions.flatten(0, 1))
        noise = ((rollout.actions.flatten(0, 1) - policy.mean) / agent.log_std.exp()).view(25_000, 4, 2)
    torch.testing.assert_close(rollout.log_probs.flatten(), log_probs, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(rollout.values.flatten(), values)
    bound = 5 / math.sqrt(100_000)
    assert noise.mean((0, 1)).abs().max() < bound and (noise.std((0, 1)) - 1).abs().max() < bound
    columns = noise.flatten(1)  # of each environment and dimension
    correlations = torch.corrcoef(torch.cat([columns[1:], columns[:-1]], 1).T)
    assert (correlations - torch.eye(16)).abs().max() < 5 / math.sqrt(25_000)


@pytest.mark.parametrize("name", TASKS)
def test_the_physics_and_rewards_are_gymnasiums(name):
    hidden, shown, close = TASKS[name]
    envs = fast.Pool(fast.Args(f"{name}-v5", num_envs=2), [3, 4])
    theirs = gym.make(f"{name}-v5").unwrapped
    rng, obs = np.random.default_rng(0), envs.pool.reset()[0]
    theirs.reset()
    velocities = slice(shown, shown + theirs.model.nv)
    theirs.set_state(np.concatenate([np.zeros(hidden), obs[0, :shown]]), obs[0, velocities])
    low, high = theirs.action_space.low, theirs.action_space.high
    for _ in range(20):
        actions = rng.uniform(-1.2, 1.2, (2, len(low)))
        obs, rewards, terminated, *_ = envs.step(actions)
        expected, reward, end, *_ = theirs.step(low + (high - low) * (actions[0].clip(-1, 1) + 1) / 2)
        columns = slice(velocities.stop if name == "Humanoid" else None)
        if not end:
            np.testing.assert_allclose(obs[0, columns], expected[columns], rtol=close, atol=close)
        assert rewards[0] == pytest.approx(reward, rel=close, abs=close) and terminated[0] == end
        if end:
            break


@pytest.mark.parametrize("limit, threads", [(4, 1), (4, 2), (1000, 1)])
def test_every_row_is_a_real_transition_and_an_end_is_an_end(limit, threads):
    """Of 16 poles several end in one step: by falling, by time, and with limit 4 by both."""
    flags = {"num_envs": 16, "threads": threads, "env_kwargs": {"max_episode_steps": limit}}
    envs = fast.Pool(fast.Args("InvertedPendulum-v5", **flags), list(range(16)))
    twin = gym.make("InvertedPendulum-v5").unwrapped
    twin.reset()
    ends, returns, age, obs = [], np.zeros(16), np.zeros(16, int), envs.pool.reset()[0]
    finished, actions = [], np.linspace(0.15, 1, 16)[:, None]
    for _ in range(40):
        before, age = obs.copy(), age + 1
        obs, rewards, terminated, truncated, final_obs = envs.step(actions)
        ended, cut_off = terminated | truncated, iter(final_obs)
        for n in range(16):
            twin.set_state(before[n, :2], before[n, 2:])
            expected, reward, end, *_ = twin.step(3 * actions[n])
            assert terminated[n] == end and truncated[n] == (age[n] == limit) and rewards[n] == reward
            reached = next(cut_off) if truncated[n] else obs[n]
            if truncated[n] or not end:
                np.testing.assert_allclose(reached, expected, rtol=1e-5, atol=1e-6)
            assert not ended[n] or np.abs(obs[n]).max() <= 0.01  # a first observation
        returns += rewards
        finished += [*zip(returns[ended], age[ended])]
        returns[ended] = age[ended] = 0
        ends.append([ended.sum(), terminated.sum(), truncated.sum(), (terminated & truncated).sum()])
    assert (np.max(ends, 0) > [1, 0, 0, 0]).all() if limit == 4 else np.max(ends, 0)[1] > 1
    assert finished[-100:] == [*zip(envs.return_queue, envs.length_queue)]
    assert envs.episode_count == len(finished)


def test_rows_of_a_rollout_are_not_overwritten():
    args = fast.Args("InvertedPendulum-v5", num_envs=3, num_steps=20, env_kwargs={"max_episode_steps": 4})
    envs, again = (fast.Pool(args, [1, 2, 3]) for _ in range(2))
    agent, finals = make_agent(args, 4, 1), []
    rollout = fast.collect(envs, agent, torch.as_tensor(envs.pool.reset()[0]), args)
    obs = again.pool.reset()[0].copy()
    for t in range(20):
        np.testing.assert_array_equal(rollout.obs[t], obs)
        obs, *_, final_obs = again.step(rollout.actions[t].numpy())
        obs, finals = obs.copy(), [*finals, *final_obs]
    np.testing.assert_array_equal([*rollout.final_obs, *rollout.next_obs], [*finals, *obs])
    assert len(np.unique(rollout.obs[0, :, 0])) == 3 and len(finals) > 5  # seeds differ


def test_it_trains_is_the_same_by_seed_and_resumes():
    args = fast.Args(**SMALL)
    (first, path), (second, _) = train(fast, args, "first"), train(fast, args, "second")
    assert torch.equal(*(parameters_to_vector(agent.parameters()) for agent in (first, second)))
    more, resumed = train(fast, replace(args, resume=path, total_timesteps=320), "third")
    saved = torch.load(resumed, weights_only=True)
    assert saved["global_step"] == 320 and saved["optimizer"]["state"][0]["step"] == 5 * 20
    assert not torch.equal(*(parameters_to_vector(agent.parameters()) for agent in (first, more)))


def test_checkpoints_go_both_ways():
    flags = SMALL | {"env_kwargs": {"reset_noise_scale": 0.02}}
    _, ours = train(fast, fast.Args(**flags, threads=2), "fast")
    _, theirs = train(plain, plain.Args(**flags), "plain")
    for path in (ours, theirs):
        args = [ppo.load_checkpoint(path)["args"] for ppo in (plain, fast)]
        assert plain.evaluate(path, args[0]) == fast.evaluate(path, args[1])
        assert args[0].env_kwargs == {"reset_noise_scale": 0.02}


def test_what_cannot_be_served_costs_one_line(monkeypatch):
    refused = {"Mountain-v1": "EnvPool has no Mountain-v1", "Humanoid-v4": "no contact forces.*v5"}
    for env_id, message in (refused | {"Hopper-v5": "Hopper-v5 cannot take .*gravity"}).items():
        args = fast.Args(env_id, num_envs=2, env_kwargs={"gravity": 1})
        with pytest.raises(gym.error.Error, match=message):
            fast.Pool(args, [1, 2])
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(gym.error.Error, match="pip install envpool"):
        fast.Pool(args, [1, 2])
