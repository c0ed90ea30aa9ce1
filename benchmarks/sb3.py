"""The PPOs of stable-baselines3 and sb3-contrib, for returns.py and speed.py.

    python benchmarks/sb3.py --env-id HalfCheetah-v5 --like zoo
    python benchmarks/sb3.py --env-id Taxi-v4 --like ppo_masks_discrete --gamma 0.99

`--like default` has the package's own settings, `zoo` rl-zoo's for HalfCheetah (its hyperparams/ppo.yml,
00128b5); else it has those of one of our scripts, whose flags it takes.
"""

import argparse
import importlib
from typing import Any

import gymnasium as gym
import returns  # noqa: F401 - finds our scripts
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.atari_wrappers import WarpFrame
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

ZOO = {"n_steps": 512, "gamma": 0.98, "learning_rate": 2.0633e-5, "ent_coef": 0.000401762, "clip_range": 0.1,
       "n_epochs": 20, "gae_lambda": 0.92, "max_grad_norm": 0.8, "vf_coef": 0.58096, "batch_size": 64,
       "policy_kwargs": {"log_std_init": -2, "ortho_init": False, "activation_fn": torch.nn.ReLU,
                         "net_arch": {"pi": [256, 256], "vf": [256, 256]}}}  # fmt: skip


def make_model(like: str, args: Any, package: str = "stable_baselines3") -> BaseAlgorithm:
    """A PPO with the settings of args, which are those of our script of that name."""

    def wrap(env: gym.Env) -> gym.Env:
        if "pixels" in like:
            if isinstance(env.observation_space, gym.spaces.Dict):  # Vizdoom's
                screen = env.observation_space["screen"]
                env = gym.wrappers.TransformObservation(env, lambda obs: obs["screen"], screen)
            return WarpFrame(env, args.frame_size, args.frame_size)
        if not isinstance(env.observation_space, gym.spaces.Box):
            env = gym.wrappers.FlattenObservation(env)
        if "masks" in like:  # of Taxi
            wrapper = importlib.import_module("sb3_contrib.common.wrappers").ActionMasker
            env = wrapper(env, lambda env: env.unwrapped.action_mask(env.unwrapped.s).astype(bool))
        return env

    policy, kwargs = "MlpPolicy", {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
    if like == "ppo_atari":
        importlib.import_module("ale_py")  # registers the games
        envs = make_atari_env(f"ALE/{args.env_id}-v5", n_envs=args.num_envs, env_kwargs={"frameskip": 1})
    else:
        of_env = {"env_kwargs": dict(args.env_kwargs), "wrapper_class": wrap}
        envs = make_vec_env(args.env_id, args.num_envs, args.seed, **of_env)
        scaled = {"norm_obs": getattr(args, "norm_obs", False), "norm_reward": args.norm_reward}
        envs = VecNormalize(envs, gamma=args.gamma, **scaled) if any(scaled.values()) else envs
    if "atari" in like or "pixels" in like:
        envs, policy, kwargs = VecFrameStack(envs, 4), "CnnPolicy", {}
    if "lstm" in like:
        policy, package = "MlpLstmPolicy", "sb3_contrib"
        kwargs |= {"lstm_hidden_size": args.lstm_size, "shared_lstm": True, "enable_critic_lstm": False}
    package = "sb3_contrib" if "masks" in like else package
    name = {"ppo_lstm_discrete": "RecurrentPPO", "ppo_masks_discrete": "MaskablePPO"}.get(like, "PPO")
    rate = (lambda left: left * args.learning_rate) if args.anneal_lr else args.learning_rate
    return getattr(importlib.import_module(package), name)(
        policy, envs, rate, args.num_steps, args.num_envs * args.num_steps // args.num_minibatches,
        n_epochs=args.update_epochs, gamma=args.gamma, gae_lambda=args.gae_lambda, clip_range=args.clip_coef,
        ent_coef=args.ent_coef, vf_coef=args.vf_coef / 2, max_grad_norm=args.max_grad_norm, seed=args.seed,
        target_kl=args.target_kl, policy_kwargs=kwargs, device="cpu", tensorboard_log="runs",
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--like", default="default")
    known, flags = parser.parse_known_args()
    ours = known.like.startswith("ppo")
    args = tyro.cli(importlib.import_module(known.like if ours else "ppo_continuous").Args, args=flags)
    if ours:
        model = make_model(known.like, args)
    else:
        envs, settings = make_vec_env(args.env_id, 1, args.seed), {}
        if known.like == "zoo":
            envs, settings = VecNormalize(envs, gamma=ZOO["gamma"]), ZOO
        model = PPO("MlpPolicy", envs, seed=args.seed, device="cpu", tensorboard_log="runs", **settings)
    model.learn(args.total_timesteps)


if __name__ == "__main__":
    main()
