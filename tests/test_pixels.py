"""variants/ppo_pixels_discrete.py: what the network sees, and what is kept of it."""

from pathlib import Path

import cv2
import gymnasium as gym
import numpy as np
import ppo_pixels_discrete as ppo
import pytest
import torch
from conftest import train


class Screen(gym.Env):
    """Squares whose colour counts steps and episodes; cut off after five of them."""

    metadata, action_space = {"render_modes": ["rgb_array"], "render_fps": 30}, gym.spaces.Discrete(2)
    episode = 0

    def __init__(self, kind="last", render_mode=None):
        self.kind, self.render_mode = kind, render_mode
        self.channels = {"grey": [0], "alpha": [2] * 4, "stack": [0, 1], "five": [0] * 5}.get(kind, [0, 1, 2])
        self.axes = [2, 0, 1] if kind in ("first", "stack") else [0, 1, 2]
        shape = np.array([48, 64, len(self.channels)])[self.axes]
        image, text = gym.spaces.Box(0, 255, (*shape,), np.uint8), gym.spaces.Text(9)
        parts = {"dict": {"screen": image, "mission": text}, "two": {"left": image, "right": image}}
        self.observation_space = gym.spaces.Dict(parts[kind]) if kind in parts else image

    def render(self):
        image = np.zeros((48, 64, 3), np.uint8)
        image[: 8 * self.t + 8, :32], image[..., 2] = 200, 20 * self.episode
        return image

    def look(self):
        image = self.render()[..., self.channels].transpose(self.axes)
        return {"screen": image, "mission": "go"} if self.kind == "dict" else image

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.episode = 0, self.episode + 1
        return self.look(), {}

    def step(self, action):
        self.t += 1
        return self.look(), float(action), False, self.t == 5, {}


gym.register("Screen-v0", Screen)


def args_of(kind="last", **flags):
    run = {"num_envs": 2, "num_steps": 16, "num_minibatches": 2, "total_timesteps": 64, "eval_episodes": 1}
    return ppo.Args("Screen-v0", env_kwargs={"kind": kind}, **run | {"frame_size": 40} | flags)


def seen(screen, colour):
    """The image that a screen should be shown as (C, 40, 40)."""
    image = cv2.cvtColor(screen, cv2.COLOR_RGB2GRAY) if screen.shape[2] == 3 and not colour else screen
    return np.atleast_3d(cv2.resize(image, (40, 40), interpolation=cv2.INTER_AREA)).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["last", "first", "dict", "grey", "alpha", "stack"])
def test_the_network_sees_what_the_film_shows_and_no_stack_mixes_episodes(kind):
    args = args_of(kind, colour=kind in ("first", "grey"))
    envs = ppo.make_envs(args, 1)
    twin = Screen(kind)
    twin.reset()
    frames, obs = [seen(twin.render()[..., twin.channels], args.colour)] * 4, envs.reset(seed=[1])[0]
    for _ in range(12):
        np.testing.assert_array_equal(obs[0], np.stack(frames[-4:]))
        obs, _, _, truncated, info = envs.step(np.array([0]))
        twin.step(0)
        frames.append(seen(twin.render()[..., twin.channels], args.colour))
        if truncated[0]:
            np.testing.assert_array_equal(info["final_obs"][0], np.stack(frames[-4:]))
            twin.reset()
            frames = [seen(twin.render()[..., twin.channels], args.colour)] * 4


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_it_trains_on_bytes_films_and_is_the_same_by_seed(vectorization):
    args = args_of(vectorization=vectorization)
    agents = [train(ppo, args, name) for name in ("first", "second")]
    weights = [torch.cat([p.flatten() for p in agent.parameters()]) for agent, _ in agents]
    assert torch.equal(*weights)
    envs = ppo.make_envs(args, 2)
    rollout = ppo.collect(envs, agents[0][0], torch.as_tensor(envs.reset(seed=1)[0]), args)
    batch = ppo.make_batch(agents[0][0], rollout, args)
    assert rollout.obs.dtype == batch.obs.dtype == torch.uint8
    assert batch.obs.data_ptr() == rollout.obs.data_ptr()  # not even copied
    assert len(ppo.evaluate(agents[0][1], args_of(capture_video=True))) == 1
    assert len([*Path("first/videos").glob("*.mp4")]) == 1


@pytest.mark.parametrize("env_id, kind", [("Screen-v0", "two"), ("Screen-v0", "five"), ("CartPole-v1", None)])
def test_what_is_not_one_image_is_refused(env_id, kind):
    with pytest.raises(gym.error.Error, match=r"no image of bytes.*ppo_discrete.py"):
        ppo.make_envs(ppo.Args(env_id, env_kwargs={"kind": kind} if kind else {}), 1)
