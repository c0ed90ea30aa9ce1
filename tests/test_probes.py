"""Whole trainings in environments whose optimal values and actions are known."""

import pytest
import torch

ppo = TASK = None  # set by the fixture
pytestmark = pytest.mark.usefixtures("script")

FLAGS = {"num_envs": 8, "num_steps": 32, "num_minibatches": 4, "update_epochs": 8, "learning_rate": 5e-3}


def train(name, total_timesteps=10_000, **flags):
    defaults = FLAGS | {"gamma": 0.9, "norm_obs": False, "norm_reward": False, "eval_episodes": 1}
    return ppo.train(ppo.Args(f"probe_envs:{name}-v0", total_timesteps=total_timesteps, **(defaults | flags)))


@torch.no_grad()
def values(agent, *obs):
    return agent(torch.tensor(obs, dtype=torch.float64)[:, None])[1].tolist()


@torch.no_grad()
def modes(agent, *obs):
    """The greedy actions, in [-1, 1]."""
    actions = agent(torch.tensor(obs, dtype=torch.float64)[:, None])[0].mode.flatten()
    return (actions if actions.is_floating_point() else 2.0 * actions - 1).tolist()


def test_a_reward_that_only_a_time_limit_stops_is_worth_its_endless_sum():
    """V = 1/(1 - γ) = 10. Taking the limit of 5 steps for an end of the world gives at most 1 + γ + ... + γ⁴ = 4.1."""
    assert values(train("Truncated", 20_000), 0.0) == pytest.approx([10.0], rel=0.02)


def test_a_reward_whose_episode_terminates_is_worth_itself():
    assert values(train("Terminated"), 0.0) == pytest.approx([1.0], rel=0.02)


def test_a_reward_one_step_away_is_discounted_once():
    assert values(train("Countdown"), 0.0, 1.0) == pytest.approx([0.9, 1.0], rel=0.03)


def test_the_action_that_pays_is_found():
    agent = train("Sign")
    assert modes(agent, 0.0)[0] > 0.3
    assert values(agent, 0.0)[0] > 0.9  # under a policy that is right nearly always


@pytest.mark.parametrize("norm", [False, True])
def test_the_observation_decides_the_action(norm):
    agent = train("Match", norm_obs=norm, norm_reward=norm)
    left, right = modes(agent, -1.0, 1.0)
    assert left < -0.3 and right > 0.3


def test_clipped_values_still_reach_the_right_value():
    assert values(train("Terminated", clip_vloss=True), 0.0) == pytest.approx([1.0], rel=0.02)


def learned_std():
    return {"final_std": None} if ppo.__name__ == "ppo_continuous" else {}


def test_an_entropy_bonus_keeps_the_policy_wide():
    agents = [train("Sign", ent_coef=c, **learned_std()) for c in (0.0, 5.0)]
    narrow, wide = (agent(torch.zeros(1, 1))[0].entropy().item() for agent in agents)
    assert wide > narrow + 0.1


def test_a_real_task_is_learned():
    """Random policies get about -1200 in Pendulum and 22 in CartPole. So few steps are too few for a scheduled std."""
    flags = {"num_envs": 8, "num_steps": 256, "num_minibatches": 16, "gamma": 0.9, "learning_rate": 1e-3}
    flags |= learned_std()
    args = ppo.Args(TASK, total_timesteps=60_000 if TASK == "Pendulum-v1" else 20_000, eval_episodes=10, **flags)
    returns = ppo.evaluate(ppo.train(args), args, None)
    assert returns.mean() > {"Pendulum-v1": -300, "CartPole-v1": 300}[TASK]
