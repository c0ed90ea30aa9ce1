"""variants/ppo_masks_discrete.py, against probabilities in float64 by hand and environments that check."""

import gymnasium as gym
import numpy as np
import ppo_masks_discrete as ppo
import pytest
import torch
from conftest import train
from gymnasium import spaces

SPACES = {
    "Discrete": spaces.Discrete(6, start=-2),
    "Many": spaces.Discrete(1000),
    "MultiDiscrete": spaces.MultiDiscrete([3, 1, 4], start=[1, 0, 5]),
    "MultiBinary": spaces.MultiBinary(3),
}


class Masked(gym.Env):
    """Pays for the last valid choice of each part; its mask changes with each step, the third has none."""

    def __init__(self, kind, key, bad=None):
        self.action_space, self.key, self.bad = SPACES[kind], key, bad
        several = {"MultiDiscrete": [3, 1, 4], "MultiBinary": [2, 2, 2]}
        self.nvec = several.get(kind) or [SPACES[kind].n]
        space = {"x": spaces.Box(-1, 1, (2,)), "action_mask": spaces.MultiBinary(int(sum(self.nvec)))}
        self.observation_space = spaces.Dict(space) if key == "obs" else space["x"]

    def look(self):
        parts = [(self.np_random.random(n) < 0.3) | (self.t == 3) for n in self.nvec]
        for part in parts:
            part[self.np_random.integers(len(part))] = True
        self.mask = np.concatenate(parts).astype(np.int8)
        if self.t == 5 and self.bad:
            self.mask = {"none": np.zeros_like(self.mask), "short": self.mask[1:]}[self.bad]
        x = self.np_random.random(2).astype(np.float32)
        obs = {"x": x, "action_mask": self.mask} if self.key == "obs" else x
        return obs, {} if self.key == "obs" else {"action_mask": None if self.t == 3 else self.mask}

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look()

    def step(self, action):
        assert action in self.action_space and isinstance(action, int | np.ndarray), type(action)
        choices = np.ravel(action - getattr(self.action_space, "start", 0)).astype(int)
        offsets = np.cumsum([0, *self.nvec[:-1]])
        assert self.mask[offsets + choices].all(), "an invalid action was taken"
        self.t += 1
        obs, info = self.look()
        return obs, float(choices.sum()), False, self.t == 9, info


gym.register("Masked-v0", Masked, disable_env_checker=True)


def small(kind="MultiDiscrete", key="info", bad=None, **flags):
    env_kwargs = {"kind": kind, "key": key} | ({"bad": bad} if bad else {})
    run = {"num_envs": 4, "num_steps": 32, "total_timesteps": 384, "eval_episodes": 2}
    return ppo.Args("Masked-v0", env_kwargs=env_kwargs, **run | flags)


@pytest.mark.parametrize("key", ["info", "obs"])
@pytest.mark.parametrize("kind", SPACES)
def test_no_invalid_action_is_ever_taken_and_the_first_ratio_is_one(record, kind, key):
    updates = record(ppo, "update")
    agent, path = train(ppo, small(kind, key))
    assert len(updates) == 3 and all(abs(call.result[0]["approx_kl"]) < 1e-6 for call in updates)
    assert len(ppo.evaluate(path, small(kind, key))) == 2
    assert all(parameter.isfinite().all() for parameter in agent.parameters())


@pytest.mark.parametrize("kind", SPACES)
def test_probabilities_entropy_and_gradients_are_those_of_the_valid_choices(kind, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of preprocess
    envs = ppo.make_envs(small(kind), 4)
    torch.manual_seed(0)
    agent = ppo.Agent(envs, small(kind)).double()
    with torch.no_grad():
        agent.actor[-1].weight.normal_(0, 1)
    obs = torch.as_tensor(envs.reset(seed=3)[0])
    inputs, (policy, _) = agent.preprocess(obs), agent(obs)
    actions = policy.sample()
    log_prob, entropy = policy.log_prob(actions), policy.entropy()
    (log_prob.sum() + entropy.sum()).backward()
    got = [parameter.grad.clone() for parameter in agent.actor.parameters()]
    agent.zero_grad()
    logits = agent.actor(inputs[:, :2]).unflatten(1, (len(envs.single_action_space.nvec), -1))
    log_probs, entropies = torch.zeros(4).double(), torch.zeros(4).double()
    for row in range(4):
        for part, mask in enumerate(inputs[row, 2:].reshape(logits.shape[1:])):
            valid = mask.nonzero().flatten()
            p = (logits[row, part, valid] - logits[row, part, valid].max()).exp()
            p = p / p.sum()
            log_probs[row] += p[(valid == actions[row, part]).nonzero().item()].log()
            entropies[row] -= (p * p.log()).sum()
    torch.testing.assert_close((log_prob, entropy), (log_probs, entropies), rtol=1e-9, atol=1e-9)
    (log_probs.sum() + entropies.sum()).backward()
    expected = [parameter.grad for parameter in agent.actor.parameters()]
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("bad, vectorization", [("none", "sync"), ("none", "async"), ("short", "sync")])
def test_a_mask_that_leaves_nothing_or_does_not_fit_names_environment_and_step(bad, vectorization):
    with pytest.raises(gym.error.Error, match="Masked-v0, step 5: no valid mask of 8: "):
        train(ppo, small(bad=bad, vectorization=vectorization))


def test_what_has_no_choices_is_refused_and_what_has_no_mask_trains():
    with pytest.raises(gym.error.Error, match=r"Box.*ppo_continuous.py"):
        train(ppo, ppo.Args("Pendulum-v1"))
    agent, _ = train(ppo, ppo.Args("CartPole-v1", num_envs=4, num_steps=16, total_timesteps=128))
    assert agent.mask_size == 2
