"""EnvPool's environments, written in C++, for Gymnasium.

    pip install envpool==1.2.5
    python ppo_continuous.py --vectorization vector_entry_point \\
        --env-id benchmarks.envpool_envs:EnvPool/HalfCheetah-v5

Importing this registers them in the namespace EnvPool. Those for MuJoCo are Gymnasium's v5.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

try:
    import envpool
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("envpool is not installed: pip install envpool") from error


class EnvPoolEnvs(VectorEnv):
    """They start anew in the step that ends an episode, whose last observation is in final_obs. task is of
    envpool.list_all_envs(), options are envpool.make's, num_threads 0 takes all cores. Raises gym.error.Error
    for rendering, and for observations that are no array."""

    def __init__(
        self, task: str, num_envs: int, num_threads: int = 0, render_mode: str | None = None, **options: Any
    ) -> None:
        if render_mode is not None:
            raise gym.error.Error(f"EnvPool/{task} cannot render: film Gymnasium's environment of that name")
        self.task, self.num_envs = task, num_envs
        # EnvPool calls an episode cut off that ends in the step of its time limit, so the limit is kept here.
        self.limit = options.pop("max_episode_steps", envpool.make_spec(task).config.max_episode_steps)
        options |= {"max_episode_steps": min(self.limit, 2**31 - 2) + 1}
        self.options = options | {"num_envs": num_envs, "num_threads": num_threads}
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.make_pool(np.random.SeedSequence().generate_state(num_envs) // 2)
        space, self.single_action_space = self.pool.observation_space, self.pool.action_space
        if not isinstance(space, gym.spaces.Box):
            raise gym.error.Error(f"EnvPool/{task} has observations of {space}: only arrays are served here")
        if space.dtype.kind == "f":  # some bounds are wrong
            space = gym.spaces.Box(-np.inf, np.inf, space.shape, space.dtype)
        self.single_observation_space = space
        self.observation_space = batch_space(space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def make_pool(self, seeds: Any) -> None:  # only a new one can be given seeds
        self.pool = envpool.make(
            self.task, env_type="gymnasium", seed=[int(s) for s in seeds], **self.options
        )

    def reset(self, *, seed: int | list[int] | None = None, options: dict | None = None) -> tuple:
        if options:
            raise ValueError(f"EnvPool's environments take no options at reset, but got {options}")
        if seed is not None:
            seeds = np.arange(seed, seed + self.num_envs) if np.isscalar(seed) else np.asarray(seed)
            if len(seeds) != self.num_envs or min(seeds) < 0 or max(seeds) >= 2**31:
                raise ValueError(f"EnvPool needs {self.num_envs} seeds from 0 to 2^31 - 1, not {seed}")
            self.make_pool(seeds)
        return self.pool.reset()[0], {}

    def step(self, actions: np.ndarray) -> tuple:
        obs, rewards, terminated, _, info = self.pool.step(actions)
        truncated = info["elapsed_step"] >= self.limit
        ended, info = terminated | truncated, {}
        if ended.any():
            info = {"final_obs": obs, "_final_obs": ended}
            obs = obs.copy()
            obs[ended] = self.pool.reset(np.flatnonzero(ended))[0]
        return obs, rewards, terminated, truncated, info

    def close_extras(self, **_: Any) -> None:
        self.pool.close()


for task in envpool.list_all_envs():
    if gym.envs.registration.ENV_ID_RE.fullmatch(f"EnvPool/{task}"):
        gym.register(f"EnvPool/{task}", vector_entry_point=EnvPoolEnvs, kwargs={"task": task})
