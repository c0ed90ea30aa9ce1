"""stable-baselines3's PPO at its own defaults, with the flags of our scripts, for returns.py and speed.py."""

import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy


def main(env_id: str, seed: int = 1, total_timesteps: int = 1_000_000) -> None:
    torch.set_num_threads(1)
    model = PPO("MlpPolicy", env_id, seed=seed, device="cpu", tensorboard_log="runs")
    model.learn(total_timesteps)
    returns, _ = evaluate_policy(model, model.get_env(), return_episode_rewards=True)
    print(f"evaluation: {len(returns)} episodes, return {np.mean(returns):.5g}")


if __name__ == "__main__":
    tyro.cli(main)
