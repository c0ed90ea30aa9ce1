#!/usr/bin/env bash
# gym-trading-env 0.3.5 on gymnasium 1.4.0: the step that ruins the portfolio, which ends the episode as
# terminated, pays 0.0, more than any losing step before it: ruin is the best that a losing position can do. (The
# reward is computed only if the episode goes on.) And max_episode_duration=10 gives 9 steps.
#
# Guessed before: the ruinous step pays the largest loss; ten rewards.
# Seen: rewards, terminated, and the value of the portfolio, of an agent that stays short, which began with 1000.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q gym-trading-env==0.3.5 gymnasium==1.4.0 numpy==2.4.6
cd "$folder"
cat > finding.py <<'PYTHON'
import gym_trading_env  # noqa: F401
import gymnasium as gym
import pandas as pd


def short(prices, duration="max"):
    df = pd.DataFrame({"close": prices, "feature_x": range(len(prices))})
    kwargs = {"positions": [-1, 0], "initial_position": -1, "max_episode_duration": duration, "verbose": 0}
    env = gym.make("TradingEnv", df=df, **kwargs)
    env.reset(seed=1)
    rewards, terminated, truncated = [], False, False
    while not (terminated or truncated):
        _, reward, terminated, truncated, info = env.step(0)
        rewards.append(round(float(reward), 3))
    return rewards, terminated, round(float(info["portfolio_valuation"]), 1)


print("loses", *short([100.0, 110.0, 120.0, 130.0]))
print("is ruined", *short([100.0, 110.0, 120.0, 400.0, 400.0]))
print("steps in 10:", len(short([100.0] * 50, duration=10)[0]))
PYTHON
"$folder/venv/bin/python" -W ignore finding.py 2>errors | tee seen || { cat errors; exit 1; }
diff seen - <<'SEEN'
loses [-0.105, -0.118, -0.134] False 700.0
is ruined [-0.105, -0.118, 0.0] True -2000.0
steps in 10: 9
SEEN
echo "as before"
