#!/usr/bin/env bash
# gymnasium 1.4.0's RecordVideo with moviepy 2.2.1: an episode of n steps is n + 1 frames, and all of them
# reach the writer, but at 20 frames a second (MuJoCo's HalfCheetah) the file lacks the last one, at 25 and
# 50 for some lengths; at 24 frames a second, of these lengths, for 99 steps alone. The frame that is missing
# is the one that shows how the episode ended.
#
# Guessed before: the film has n + 1 frames at every rate.
# Seen (rate: frames in the file for episodes of 9, 10, 50 and 99 steps):
#   20: 9 10 50 99
#   24: 10 11 51 99
#   25: 10 10 51 100
#   50: 10 10 51 100
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gymnasium==1.4.0 moviepy==2.2.1 imageio==2.38.1 imageio-ffmpeg==0.6.0 numpy==2.4.6
cd "$folder"
cat > films.py <<'PYTHON'
import gymnasium as gym
import imageio
import numpy as np


class Clock(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, rate, steps):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": rate}
        self.render_mode, self.steps = "rgb_array", steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1, np.float32), 0.0, self.t == self.steps, False, {}

    def render(self):
        return np.full((64, 64, 3), 255 * self.t // self.steps, np.uint8)


for rate in (20, 24, 25, 50):
    counts = []
    for steps in (9, 10, 50, 99):
        folder = f"{rate}-{steps}"
        env = gym.wrappers.RecordVideo(Clock(rate, steps), folder, disable_logger=True)
        env.reset()
        while not env.step(0)[2]:
            pass
        env.close()
        counts.append(sum(1 for _ in imageio.get_reader(f"{folder}/rl-video-episode-0.mp4")))
    print(f"{rate}:", *counts)
PYTHON
"$folder/venv/bin/python" -W ignore films.py | tee seen
diff seen - <<'SEEN'
20: 9 10 50 99
24: 10 11 51 99
25: 10 10 51 100
50: 10 10 51 100
SEEN
echo "as before"
