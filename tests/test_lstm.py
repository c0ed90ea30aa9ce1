"""variants/ppo_lstm_discrete.py, against an LSTMCell that takes one step after the other in float64."""

from dataclasses import replace

import gymnasium as gym
import numpy as np
import ppo_lstm_discrete as ppo
import pytest
import torch
from conftest import train
from torch import nn

import ppo_discrete


class Cue(gym.Env):
    """Shows -1 or 1, and asks for it at the end; cut off in every third episode before."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, delay=4, cut_off=False):
        self.delay, self.cut_off, self.episode = delay, cut_off, 0

    def look(self):
        return np.array([self.cue if self.t == 0 else 0, self.t == self.delay], np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.cue, self.episode = 0, int(self.np_random.choice([-1, 1])), self.episode + 1
        return self.look(), {}

    def step(self, action):
        self.t += 1
        end = self.t > self.delay
        cut_off = self.cut_off and self.episode % 3 == 0 and self.t == self.delay - 1
        return self.look(), float(end and 2 * action - 1 == self.cue), end, cut_off, {}


gym.register("Cue-v0", Cue)


def args_of(**flags):
    run = {"num_envs": 8, "num_steps": 64, "num_minibatches": 2, "total_timesteps": 1024, "eval_episodes": 20}
    return ppo.Args("Cue-v0", **run | {"env_kwargs": {"cut_off": True}} | flags)


def one_by_one(agent, obs, begins):
    """Logits (T, A) and values (T,) of one environment's observations (T, O)."""
    cell = nn.LSTMCell(agent.lstm.input_size, agent.lstm.hidden_size).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in agent.lstm.state_dict().items()})
    state, out = None, []
    for x, begin in zip(agent.encoder(obs), begins):
        state = cell(x[None], None if begin else state)
        out.append((agent.actor(state[0])[0], agent.critic(state[0])[0, 0]))
    return [torch.stack(column) for column in zip(*out)]


def test_a_rollout_is_what_one_step_after_the_other_gives(record, monkeypatch):
    """With 100 ends of both kinds; the value of a state that was cut off has the memory that led there."""
    args, seen = args_of(norm_obs=False, num_steps=128), []
    torch.manual_seed(1)
    envs = ppo.make_envs(args, 8)
    agent = ppo.Agent(envs, args)
    obs = ppo.with_memory(torch.as_tensor(envs.reset(seed=1)[0]), torch.zeros(8, 128))
    for _ in range(2):  # the second goes on from the memory of the first
        seen.append(ppo.collect(envs, agent, obs, args))
        obs = seen[-1].next_obs
    estimates = record(ppo, "compute_gae")
    batches = [ppo.make_batch(agent, rollout, args) for rollout in seen]
    next_values = estimates[1].args[1]
    done = torch.cat([rollout.terminated | rollout.truncated for rollout in seen])
    assert done.sum() > 100 and seen[1].truncated.sum() > 20
    agent.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # of preprocess
    cut_off = map(tuple, seen[1].truncated.nonzero().tolist())
    finals = [*zip(cut_off, seen[1].final_obs, strict=True)]
    with torch.no_grad():
        for n in range(8):
            begins = [True, *done[:-1, n]]
            shown = torch.cat([rollout.obs[:, n, :2] for rollout in seen]).double()
            logits, expected = one_by_one(agent, shown, begins)
            torch.testing.assert_close(seen[1].values[:, n].double(), expected[128:], rtol=1e-4, atol=1e-5)
            for (t, m), final in finals:
                if m == n:
                    begun = max(i for i in range(128 + t + 1) if begins[i])
                    episode = torch.cat([shown[begun : 128 + t + 1], final[None, :2].double()])
                    value = one_by_one(agent, episode, [True] + [False] * (len(episode) - 1))[1][-1]
                    assert next_values[t, n] == pytest.approx(value.item(), rel=1e-4, abs=1e-5)
            rows = torch.arange(128 * 8).view(128, 8)[:, n]
            policy, again = agent(batches[1].obs[rows], 128)
            torch.testing.assert_close(again, expected[128:], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(policy.logits, logits[128:].log_softmax(1), rtol=1e-5, atol=1e-6)


def test_the_first_ratio_is_one_and_gradients_reach_back_in_time(record):
    updates = record(ppo, "update")
    train(ppo, args_of())
    assert len(updates) == 2 and all(abs(call.result[0]["approx_kl"]) < 1e-6 for call in updates)
    agent = ppo.Agent(ppo.make_envs(args_of(), 1), args_of())
    inputs = torch.randn(6, 2 + 128, requires_grad=True)
    agent(inputs, 6)[1][5].backward()
    assert (inputs.grad[:, :2].abs().sum(1) > 0).all() and (inputs.grad[1:, 2:] == 0).all()


def test_a_cue_is_remembered_which_ppo_discrete_cannot():
    args = args_of(num_envs=16, num_minibatches=4, total_timesteps=20_480, env_kwargs={"delay": 4}, seed=2)
    _, path = train(ppo, args, "lstm")
    first = ppo.evaluate(path, args)
    assert np.mean(first) > 0.9 and first == ppo.evaluate(path, args)
    _, resumed = train(ppo, replace(args, resume=path, total_timesteps=22_528), "more")
    assert torch.load(resumed, weights_only=True)["global_step"] == 22_528
    plain = ppo_discrete.Args("Cue-v0", num_envs=16, total_timesteps=20_480, eval_episodes=100)
    _, path = train(ppo_discrete, plain, "plain")
    assert np.mean(ppo_discrete.evaluate(path, plain)) < 0.7


def test_large_whole_numbers_are_not_rounded_and_a_scalar_is_an_observation():
    assert ppo.with_memory(torch.tensor([2**30 + 1]), torch.zeros(1, 2))[0, 0] == 2**30 + 1


def test_fewer_environments_than_minibatches_are_refused():
    with pytest.raises(gym.error.Error, match="2 environments, 4 minibatches"):
        train(ppo, args_of(num_envs=2, num_minibatches=4))
