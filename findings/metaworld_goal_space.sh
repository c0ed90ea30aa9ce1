#!/usr/bin/env bash
# metaworld 3.1.1 on gymnasium 1.4.0: in Meta-World/MT1 the observation shows the goal, but its space says that
# these three numbers lie in [0, 0]: every observation is outside its own space, and what rescales observations
# by their bounds divides by zero. And reset(seed=1) does not fix the goal: a wrapper draws it, which only
# make's seed reaches.
#
# Guessed before: the goal has bounds that hold, contained: True; one goal.
# Seen: the goal's bounds, whether the observation is contained, how many goals three resets with one seed give.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q metaworld==3.1.1 gymnasium==1.4.0 mujoco==3.3.0 numpy==2.4.6 packaging==26.4
cd "$folder"
cat > finding.py <<'PYTHON'
import gymnasium as gym
import metaworld  # noqa: F401

env = gym.make("Meta-World/MT1", env_name="reach-v3")
space = env.observation_space
seen = [env.reset(seed=1)[0] for _ in range(3)]
print("bounds", space.low[-3:].tolist(), space.high[-3:].tolist())
print("contained:", any(space.contains(obs) for obs in seen))
print("goals:", len({tuple(obs[-3:].round(3).tolist()) for obs in seen}))
PYTHON
"$folder/venv/bin/python" -W ignore finding.py 2>errors | tee seen || { cat errors; exit 1; }
diff seen - <<'SEEN'
bounds [0.0, 0.0, 0.0] [0.0, 0.0, 0.0]
contained: False
goals: 3
SEEN
echo "as before"
