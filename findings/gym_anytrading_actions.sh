#!/usr/bin/env bash
# gym-anytrading 2.0.0 on gymnasium 1.4.0: reset() seeds the action space with int(uniform(0, 1)), which is 0. So
# env.action_space.sample() plays the same actions in every episode: a random baseline, a random warm-up of a
# replay buffer, is one and the same episode again and again. (neurogym 2.3.1 seeds it with 0, too.)
#
# Guessed before: False.
# Seen: whether 20 random actions after each of three resets are the same.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gym-anytrading==2.0.0 gymnasium==1.4.0 numpy==2.4.6
cd "$folder"
cat > finding.py <<'PYTHON'
import gym_anytrading  # noqa: F401
import gymnasium as gym

env, episodes = gym.make("stocks-v0"), []
for _ in range(3):
    env.reset()
    episodes.append([int(env.action_space.sample()) for _ in range(20)])
print("the same actions in each episode:", episodes[0] == episodes[1] == episodes[2])
PYTHON
"$folder/venv/bin/python" -W ignore finding.py 2>errors | tee seen || { cat errors; exit 1; }
diff seen - <<'SEEN'
the same actions in each episode: True
SEEN
echo "as before"
