"""Environments so small that what PPO must learn is known in closed form; ids are "probe_envs:NAME-v0".

With PROBE_ACTIONS=Discrete in the process's environment they take the actions 0 and 1 for -1 and 1.
"""

import copy
import os
import random

import gymnasium as gym
import numpy as np


class Probe(gym.Env):
    """One observation in, one action in [-1, 1] out; subclasses say what step t of an episode does."""

    observation_space = gym.spaces.Box(-100, 100, (1,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **options):
        self.render_mode, self.options, self.episode = render_mode, options, -1
        asked = os.environ.get("PROBE_ACTIONS") == "Discrete"
        self.discrete = asked and self.action_space is Probe.action_space
        if self.discrete:
            self.action_space = gym.spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self.obs(), {}

    def step(self, action):
        assert not self.discrete or type(action) is int, type(action)  # some refuse NumPy's, as nasim
        assert self.action_space.contains(action if self.discrete else action.astype(np.float32)), action
        action = np.array([2.0 * action - 1]) if self.discrete else action
        reward, terminated, truncated = self.outcome(action)
        self.t += 1
        return self.obs(), reward, terminated, truncated, {}

    def obs(self):
        return np.zeros(1)

    def render(self):
        frame = np.zeros((64, 64, 3), np.uint8)
        frame[:, : 6 * (self.t % 10) + 4] = 255
        return frame


class Constant(Probe):
    """Reward 1 in a single state, for ever; a time limit cuts it, unless terminates=True ends it."""

    def outcome(self, action):
        return 1.0, bool(self.options.get("terminates")), False


class Countdown(Probe):
    """Two steps, told apart by the observation; the only reward, 1, comes with the second."""

    def obs(self):
        return np.array([float(self.t)])

    def outcome(self, action):
        return float(self.t == 1), self.t == 1, False


class Match(Probe):
    """Reward for an action with the sign of the observation, which is -1 or 1 at random."""

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.sign = self.np_random.choice([-1.0, 1.0])
        return self.obs(), {}

    def obs(self):
        return np.array([getattr(self, "sign", 1.0)])

    def outcome(self, action):
        return float(np.sign(action[0]) * self.sign), True, False


class Counter(Probe):
    """Observes (steps, episode); pays 10·episode + steps; ends after 3 steps, by time, by death, by both."""

    observation_space = gym.spaces.Box(-1000, 1000, (2,), np.float64)

    def obs(self):
        return np.array([self.t, self.episode], dtype=np.float64)

    def outcome(self, action):
        end = self.t == 2
        return 10.0 * self.episode + self.t, end and self.episode % 3 != 0, end and self.episode % 3 != 1


class Ragged(Probe):
    """Observes (tag, t, length, kind), all but t drawn at reset, so that no two environments agree.

    Step t pays 10·tag + t. Episodes of length steps terminate (kind 0), are truncated (1), or both (2).
    """

    observation_space = gym.spaces.Box(-1000, 1000, (4,), np.float64)

    def reset(self, seed=None, options=None):
        gym.Env.reset(self, seed=seed)
        self.t, self.tag = 0, self.np_random.random()
        self.length, self.kind = int(self.np_random.integers(1, 6)), int(self.np_random.integers(3))
        return self.obs(), {}

    def obs(self):
        return np.array([self.tag, self.t, self.length, self.kind])

    def outcome(self, action):
        end = self.t + 1 == self.length
        return 10 * self.tag + self.t, end and self.kind != 1, end and self.kind != 0


class Same(Ragged):
    """Ragged, but all environments write their observations into one array."""

    array = np.zeros(4)

    def obs(self):
        self.array[:] = super().obs()
        return self.array


spaces = gym.spaces
SAMPLED = {
    "DictObs": spaces.Dict({"x": spaces.Box(-1, 1, (1,)), "y": spaces.Discrete(3)}),
    "TupleObs": spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)]),
    "DiscreteObs": spaces.Discrete(4),
    "MultiDiscreteObs": spaces.MultiDiscrete([2, 3]),
    "MultiBinaryObs": spaces.MultiBinary(5),
    "MatrixObs": spaces.Box(-1, 1, (2, 3)),
}


class Sampled(Probe):
    """Draws each observation from its space; a time limit of 3 steps."""

    def __init__(self, **options):
        super().__init__(**options)
        self.observation_space = copy.deepcopy(self.observation_space)  # a generator each

    def reset(self, seed=None, options=None):
        if seed is not None:
            self.observation_space.seed(seed)
        return super().reset(seed=seed)

    def obs(self):
        return self.observation_space.sample()

    def outcome(self, action):
        return 0.0, False, self.t == 2


class Echo(Probe):
    """Lopsided bounds, matrix-shaped actions; observes the action that came in. Never ends."""

    low, high = np.array([[-0.4, 0.0, -3.0]]), np.array([[2.0, 1.0, 5.0]])
    action_space = gym.spaces.Box(low, high, dtype=np.float64)
    observation_space = gym.spaces.Box(-10, 10, (1, 3), np.float64)

    def obs(self):
        return getattr(self, "last", np.zeros((1, 3)))

    def step(self, action):
        self.last = np.array(action)
        return self.obs(), 0.0, False, False, {}


class Broken(Probe):
    """Its 20th step brings the observation or the reward that was asked for."""

    def obs(self):
        return np.array([self.options.get("obs", 0.0) if self.t == 20 else 0.0])

    def outcome(self, action):
        return self.options.get("reward", 1.0) if self.t == 19 else 1.0, False, False


class Worst(Probe):
    def outcome(self, action):
        if self.t == 50:
            raise ValueError("the robot fell off the table")
        return 1.0, False, False


class Global(Probe):
    """Draws from the generators that all share."""

    def obs(self):
        return np.array([random.random() + np.random.rand()])

    def outcome(self, action):
        return 0.0, self.t == 3, False


class Info(Probe):
    """Says in info what nobody can gather: an array of another shape in each episode."""

    def reset(self, **kwargs):
        obs, _ = super().reset(**kwargs)
        return obs, {"path": np.zeros(self.episode + 1)}

    def step(self, action):
        return *super().step(action)[:-1], {"x_position": 1.0}

    def outcome(self, action):
        return 0.0, self.t == 2, False


class BrokenConstructor(Probe):
    def __init__(self, **options):
        raise ValueError("the robot fell off before it stood")


class OwnSpace(gym.Space):
    """As minigrid's MissionSpace: Gymnasium does not know how to flatten it."""


gym.register("Truncated-v0", Constant, max_episode_steps=5)
gym.register("Terminated-v0", Constant, kwargs={"terminates": True})
for value in (np.nan, np.inf):
    gym.register(f"Obs-{value}-v0", Broken, kwargs={"obs": value})
    gym.register(f"Reward-{value}-v0", Broken, kwargs={"reward": value})
for probe in (Countdown, Match, Counter, Ragged, Same, Echo, Worst, Global, Info, BrokenConstructor):
    gym.register(f"{probe.__name__}-v0", probe)
for name, space in SAMPLED.items():
    gym.register(f"{name}-v0", type(name, (Sampled,), {"observation_space": space}))
long_bounds = spaces.Box(0, np.arange(1.0, 31.0))
for name, wrong in {
    "Lopsided": {"action_space": spaces.Box(-0.2, 0.1, (1,), np.float32)},
    "FromOne": {"action_space": spaces.Discrete(2, start=1)},
    "Unbounded": {"action_space": spaces.Box(-np.inf, np.inf, (1,), np.float32)},
    "Huge": {"action_space": spaces.Box(-1e8, 1e8, (1,), np.float32)},
    "Integers": {"action_space": spaces.Box(-5, 5, (1,), np.int64)},
    "MultiDiscrete": {"action_space": spaces.MultiDiscrete([2, 2]), "observation_space": long_bounds},
    "GraphObs": {"observation_space": spaces.Graph(spaces.Box(-1, 1, (1,)), None)},
    "OwnSpaceObs": {"observation_space": spaces.Dict({"mission": OwnSpace()})},
    "SequenceObs": {"observation_space": spaces.Dict({"path": spaces.Sequence(spaces.Box(-1, 1, (1,)))})},
}.items():
    gym.register(f"{name}-v0", type(name, (Constant,), wrong))
