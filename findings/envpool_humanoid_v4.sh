#!/usr/bin/env bash
# envpool 1.2.5 beside gymnasium 1.4.0 and mujoco 3.15.0: EnvPool's Humanoid-v4 has the contact forces (the last
# 84 of 376 observed numbers) at 0 for ever, Gymnasium's does not; nor is v5 of either like that. A policy with
# standardised observations, trained on the one and run on the other, meets inputs that it has never seen.
#
# Guessed before: both of a name show the same numbers, up to rounding.
# Seen: how many of the contact forces ever differ from 0 in 300 steps of random actions, for each.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q envpool==1.2.5 "gymnasium[mujoco]==1.4.0" mujoco==3.15.0 numpy==2.4.6
cd "$folder"
cat > finding.py <<'PYTHON'
import envpool
import gymnasium as gym
import numpy as np


def forces(step, reset, count):
    rng, seen = np.random.default_rng(0), []
    for _ in range(300):
        obs, _, terminated, truncated, _ = step(rng.uniform(-0.4, 0.4, (1, 17)).astype(np.float32))
        seen.append(np.ravel(obs)[-count:])
        if np.any(terminated | truncated):
            reset()
    return bool(np.any(np.array(seen) != 0))


for version, count in ((4, 84), (5, 78)):
    pool = envpool.make(f"Humanoid-v{version}", "gymnasium", num_envs=1, seed=1)
    pool.reset()
    env = gym.make(f"Humanoid-v{version}")
    env.reset(seed=1)
    print(f"v{version} EnvPool:", forces(pool.step, lambda: None, count))
    print(f"v{version} Gymnasium:", forces(lambda a: env.step(a[0]), env.reset, count))
PYTHON
"$folder/venv/bin/python" -W ignore finding.py 2>errors | tee seen || { cat errors; exit 1; }
diff seen - <<'SEEN'
v4 EnvPool: False
v4 Gymnasium: True
v5 EnvPool: True
v5 Gymnasium: True
SEEN
echo "as before"
