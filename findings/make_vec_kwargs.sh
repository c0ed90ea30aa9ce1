#!/usr/bin/env bash
# gymnasium 1.4.0: make and make_vec build different environments from one id, if a keyword argument in its
# registration has the name of one of make's own (max_episode_steps, disable_env_checker, render_mode). make
# hands it to the environment. make_vec calls make with it, which takes it as its own: the environment gets the
# default of its constructor, and a TimeLimit is put around it. In the wild: lbforaging 2.0.0, whose ids gym.make
# makes and gym.make_vec does not (TypeError: missing 'max_episode_steps').
#
# Guessed before: both print 5 False.
# Seen: see below; the limit that the environment was given, and whether a TimeLimit is around it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gymnasium==1.4.0 numpy==2.4.6
cd "$folder"
cat > finding.py <<'PYTHON'
import gymnasium as gym


class Clock(gym.Env):
    observation_space = action_space = gym.spaces.Discrete(2)

    def __init__(self, max_episode_steps=1000):
        self.limit = max_episode_steps

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        return 0, 0.0, self.t == self.limit, False, {}


gym.register("Clock-v0", Clock, kwargs={"max_episode_steps": 5})
for name, env in (("make", gym.make("Clock-v0")), ("make_vec", gym.make_vec("Clock-v0", 1).envs[0])):
    print(name, env.unwrapped.limit, "TimeLimit" in str(env))
PYTHON
"$folder/venv/bin/python" -W ignore finding.py 2>errors | tee seen || { cat errors; exit 1; }
diff seen - <<'SEEN'
make 5 False
make_vec 1000 True
SEEN
echo "as before"
