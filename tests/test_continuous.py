"""What only ppo_continuous.py has: Gaussian actions, and the way from them to an environment's bounds."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

import ppo_continuous as ppo


def set_up(env_id, **flags):
    args = ppo.Args(env_id=f"probe_envs:{env_id}-v0", **{"num_envs": 3, "num_steps": 8, **flags})
    torch.manual_seed(args.seed)
    envs = ppo.make_envs(args)
    agent = ppo.Agent(envs, args)
    return args, envs, agent, envs.reset(seed=[0, 1, 2])[0]


def test_actions_are_stored_as_sampled_with_their_own_log_probability():
    args, envs, agent, obs = set_up("Echo", num_steps=64)
    rollout, _, _ = ppo.collect(envs, agent, obs, args, 0)
    assert rollout.actions.shape == (64, 3, 1, 3) and (rollout.actions.abs() > 1).any()
    with torch.no_grad():
        mean = agent(rollout.obs.flatten(0, 1))[0].mean.view(64, 3, 1, 3)
    by_hand = Normal(mean, agent.log_std.exp()).log_prob(rollout.actions).sum((-1, -2)).detach()
    torch.testing.assert_close(rollout.log_probs, by_hand, rtol=1e-5, atol=1e-5)
    low, high = np.array([-0.4, 0.0, -3.0]), np.array([2.0, 1.0, 5.0])
    sent = low + (high - low) * (rollout.actions[:-1].clamp(-1, 1).numpy() + 1) / 2
    np.testing.assert_allclose(rollout.obs[1:].numpy(), sent, atol=1e-6)  # Echo shows what it was sent


@pytest.mark.parametrize("action, expected", [(-1, [-0.4, 0, -3]), (1, [2, 1, 5]), (0, [0.8, 0.5, 1]), (7, [2, 1, 5])])
def test_actions_are_clipped_and_mapped_to_the_bounds(action, expected):
    _, envs, _, _ = set_up("Echo")
    actions = np.full((3, 1, 3), action, dtype=np.float32)
    obs, *_ = envs.step(actions)
    np.testing.assert_allclose(obs, np.broadcast_to(expected, (3, 1, 3)), atol=1e-6)
    assert (actions == action).all()  # the caller's array is left alone


def test_what_mujoco_says_in_info_is_not_gathered():
    envs = ppo.make_envs(ppo.Args(num_envs=2))
    envs.reset(seed=[0, 1])
    assert envs.step(np.zeros((2, 6), np.float32))[-1] == {}
    assert "x_position" in envs.unwrapped.envs[0].unwrapped.step(np.zeros(6))[-1]


def test_the_first_policy_is_nearly_the_same_everywhere_and_the_first_values_are_not():
    _, _, agent, _ = set_up("Ragged")
    with torch.no_grad():
        policy, values = agent(torch.randn(1000, 4).double())
    assert policy.mean.abs().max() < 0.05 < 0.2 < values.std()
    torch.testing.assert_close(policy.stddev, torch.full((1000, 1), 0.6))


def std_after(agent, rows):
    """The policy's standard deviation once so many observations were learned from."""
    agent.obs_stats.count.fill_(rows)
    with torch.no_grad():
        return agent(torch.zeros(2, 4).double())[0].stddev


@pytest.mark.parametrize("rows, expected", [(0, 0.8), (250, 0.8 * 0.5**0.5), (500, 0.4), (1000, 0.2)])
def test_the_log_of_the_standard_deviation_falls_linearly(rows, expected):
    _, _, agent, _ = set_up("Ragged", total_timesteps=1000, initial_std=0.8, final_std=0.2)
    torch.testing.assert_close(std_after(agent, rows), torch.full((2, 1), expected))


def test_a_scheduled_standard_deviation_is_not_learned():
    args, envs, agent, obs = set_up("Ragged", total_timesteps=1000, num_minibatches=1)
    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    ppo.update(agent, ppo.make_optimizer(agent, args), batch, args)
    assert agent.log_std.item() == pytest.approx(math.log(0.6))


def test_without_a_final_value_the_standard_deviation_is_learned():
    args, envs, agent, obs = set_up("Ragged", total_timesteps=1000, initial_std=0.8, final_std=None)
    torch.testing.assert_close(std_after(agent, 500), torch.full((2, 1), 0.8))
    agent.log_std.data += 1
    torch.testing.assert_close(std_after(agent, 0), torch.full((2, 1), 0.8 * math.e))
    batch = ppo.make_batch(agent, ppo.collect(envs, agent, obs, args, 0)[0], args)
    gradient, _ = ppo.minibatch_gradient(agent, batch, args, args.clip_coef)
    first = dict(agent.named_parameters())
    assert next(iter(first)) == "log_std" and gradient[0] != 0


@pytest.mark.parametrize("action", [-1.0, 1.0, 0.3, 99.0])
def test_no_rounding_leads_past_the_bounds(action):
    """In float32, -0.2 + 0.3 · (1 + 1)/2 is above 0.1; the probe refuses what its space does not contain."""
    _, envs, _, _ = set_up("Lopsided")
    envs.step(np.full((3, 1), action, dtype=np.float32))
