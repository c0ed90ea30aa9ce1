"""The speed of the scripts, with and without EnvPool, beside others and the environments alone.

    python benchmarks/speed.py compare --cleanrl FOLDER
    python benchmarks/speed.py sweep
    python benchmarks/speed.py race
    python benchmarks/speed.py processes
    python benchmarks/speed.py slow

`compare` measures HalfCheetah, Humanoid, CartPole and Breakout: each side in a process of its own, one at a
time, in turn, several times over, so that a machine that drifts does so for all. All sides have the same
environments, steps, minibatches, epochs and networks; none scales observations or rewards, or stops an
update early. FOLDER has CleanRL's scripts, patched as benchmarks/README.md says; without, they are left out.
`sweep` shows how our steps/s move with the number of environments.
`race` trains both at their own defaults and draws return against seconds. `processes` trains with one and
with two processes, by torchrun. `slow` finds from how slow a step on it pays to give each environment a
process. Leave the machine alone meanwhile.
"""

import importlib
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import returns
from returns import ROOT
from tyro.extras import SubcommandApp

RESULTS = returns.RESULTS / "speed"
AGAIN = "_2"  # the results in race/ and processes/ are of commit 011ca3b and before, with other defaults
MACHINE = f"{platform.machine()}, {os.cpu_count()} CPUs"
WARM_UP = 3  # iterations that do not count, over all that is compiled, allocated and cached in them
UNSCALED = {"norm_obs": False, "norm_reward": False}
EQUAL = {"num_envs": 8, "num_steps": 256, "num_minibatches": 8, "update_epochs": 10, "target_kl": None}
EQUAL |= UNSCALED
ATARI = {
    "num_envs": 8,
    "num_steps": 128,
    "num_minibatches": 4,
    "update_epochs": 4,
    "threads": 1,
    "device": "cpu",
}
TASKS = {  # name: script, flags, steps of a measurement, CleanRL's script
    "HalfCheetah-v5": ("ppo_continuous", EQUAL, 40_000, "ppo_continuous_action.py"),
    "Humanoid-v5": ("ppo_continuous", EQUAL, 30_000, "ppo_continuous_action.py"),
    "CartPole-v1": ("ppo_discrete", EQUAL, 60_000, "ppo.py"),
    "Breakout": ("ppo_atari", ATARI, 8_192, "ppo_atari.py"),
}
app = SubcommandApp()


# ---- Measurements: each is one process, and prints one line of JSON ----
def load(script: str, flags: dict[str, Any]) -> tuple[Any, Any]:
    """The script as a module, and its arguments. EnvPool gets as many threads as torch."""
    sys.path.insert(0, str(ROOT))
    if "EnvPool/" in flags.get("env_id", ""):
        importlib.import_module("benchmarks.envpool_envs")
        for spec in gym.registry.values():
            if spec.namespace == "EnvPool":
                spec.kwargs["num_threads"] = int(os.environ["OMP_NUM_THREADS"])
    ppo = importlib.import_module(script)
    return ppo, ppo.Args(**flags)


def measure_ours(script: str, flags: dict[str, Any], total_timesteps: int) -> dict[str, float]:
    """Trains, and splits the seconds after WARM_UP iterations: environment, policy (the rest of collect), and
    the update with all else."""
    ppo, args = load(script, flags | {"total_timesteps": total_timesteps})
    make_envs, collect = ppo.make_envs, ppo.collect
    starts, spent = [], {"environment": 0.0, "collect": 0.0}

    def timed(part: str, function: Callable, *args: object) -> object:
        start = time.perf_counter()
        result = function(*args)
        if len(starts) > WARM_UP:
            spent[part] += time.perf_counter() - start
        return result

    def make_timed_envs(*args: object) -> object:
        envs = make_envs(*args)
        envs.step = partial(timed, "environment", envs.step)
        return envs

    def timed_collect(*args: object) -> object:
        starts.append(time.perf_counter())
        return timed("collect", collect, *args)

    update, gradients = ppo.update, []

    def counted_update(*args: object) -> object:
        history = update(*args)
        gradients.append(len(history))
        return history

    ppo.make_envs, ppo.collect, ppo.update = make_timed_envs, timed_collect, counted_update
    ppo.evaluate = lambda *_: starts.append(time.perf_counter())  # in its place, the end
    ppo.train(args)
    iterations = len(starts) - 1 - WARM_UP
    seconds = starts[-1] - starts[WARM_UP]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "steps_per_second": iterations * args.batch_size / seconds,
        "environment": spent["environment"] / seconds,
        "policy": (spent["collect"] - spent["environment"]) / seconds,
        "update": 1 - spent["collect"] / seconds,
        "gradients": sum(gradients[WARM_UP:]) / seconds,
        "first_iterations": starts[WARM_UP] - starts[0] - WARM_UP * seconds / iterations,  # compiling, if any
        "MiB": usage.ru_maxrss / 1024,
    }


def measure_sb3(
    env_id: str, flags: dict[str, Any], total_timesteps: int, package: str = "stable_baselines3"
) -> dict[str, float]:
    """Trains the PPO of stable-baselines3, or of sbx, with the flags of ours, after WARM_UP iterations."""
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack

    PPO = importlib.import_module(package).PPO

    class Starts(BaseCallback):
        def _on_training_start(self) -> None:
            self.starts = []

        def _on_rollout_start(self) -> None:
            self.starts.append((time.perf_counter(), self.num_timesteps, self.model._n_updates))

        def _on_step(self) -> bool:
            return True

    common = {"n_steps": flags["num_steps"], "n_epochs": flags["update_epochs"], "device": "cpu"}
    common["batch_size"] = flags["num_envs"] * flags["num_steps"] // flags["num_minibatches"]
    if env_id == "Breakout":
        import ale_py  # noqa: F401, registers the games

        envs = VecFrameStack(
            make_atari_env("ALE/Breakout-v5", n_envs=flags["num_envs"], env_kwargs={"frameskip": 1}), 4
        )
        model = PPO("CnnPolicy", envs, **common)
    else:
        nets = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
        model = PPO("MlpPolicy", make_vec_env(env_id, n_envs=flags["num_envs"]), policy_kwargs=nets, **common)
    callback = Starts()
    model.learn(total_timesteps, callback=callback)
    (start, first, before), (end, last, epochs) = callback.starts[WARM_UP], callback.starts[-1]
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "steps_per_second": (last - first) / (end - start),
        "gradients": (epochs - before) * flags["num_minibatches"] / (end - start),
        "MiB": usage.ru_maxrss / 1024,
    }


def measure_cleanrl(path: str, flags: dict[str, Any], total_timesteps: int) -> dict[str, float]:
    """Runs a patched script of CleanRL's. It prints its mean speed from its start after each iteration."""
    env_id = flags["env_id"]
    names = ("num_envs", "num_steps", "num_minibatches", "update_epochs")
    command = [sys.executable, path, "--no-cuda", "--env-id", env_id, f"--total-timesteps={total_timesteps}"]
    command += [f"--{name.replace('_', '-')}={flags[name]}" for name in names]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    means = [int(line.split()[1]) for line in out.splitlines() if line.startswith("SPS:")]
    steps = flags["num_envs"] * flags["num_steps"] * np.arange(1, len(means) + 1)
    seconds = (steps / means)[-1] - (steps / means)[WARM_UP - 1]
    speed = (steps[-1] - steps[WARM_UP - 1]) / seconds
    per_step = flags["num_minibatches"] * flags["update_epochs"] / (flags["num_envs"] * flags["num_steps"])
    return {"steps_per_second": speed, "gradients": speed * per_step}


def measure_arithmetic(script: str, flags: dict[str, Any], total_timesteps: int) -> dict[str, float]:
    """Only the matrix products of the updates: of each layer one forward and two backward, for each row."""
    import torch

    ppo, args = load(script, flags)
    agent = ppo.Agent(ppo.make_envs(args, 1), args)
    rows = args.batch_size // args.num_minibatches
    layers = [module for module in agent.modules() if isinstance(module, torch.nn.Linear)]
    pairs = [(torch.rand(rows, m.in_features), torch.rand(rows, m.out_features), m.weight) for m in layers]
    start, count = time.perf_counter(), 2_000
    with torch.no_grad():
        for _ in range(count):
            for x, y, weight in pairs:
                _ = x @ weight.T, y @ weight, y.T @ x
    seconds = (time.perf_counter() - start) / count * args.num_minibatches * args.update_epochs
    return {"steps_per_second": args.batch_size / seconds}


def measure_environment(script: str, flags: dict[str, Any], total_timesteps: int) -> dict[str, float]:
    """Steps the script's environments with random actions."""
    ppo, args = load(script, flags)
    envs = ppo.make_envs(args, args.num_envs)
    envs.reset(seed=list(range(args.num_envs)))
    envs.action_space.seed(1)
    actions = [envs.action_space.sample() for _ in range(64)]
    steps = total_timesteps // args.num_envs
    start = time.perf_counter()
    for step in range(steps):
        envs.step(actions[step % 64])
    return {"steps_per_second": steps * args.num_envs / (time.perf_counter() - start)}


@app.command
def measure(what: str, name: str, flags: str, total_timesteps: int) -> None:
    """One measurement, printed as JSON; compare and sweep start this in processes of their own.

    Args:
        what: ours, sb3, sbx, cleanrl, environment or arithmetic.
        name: script, or for sb3 and sbx the environment.
        flags: flags of the script as JSON.
        total_timesteps: environment steps to train for.
    """
    functions = {"ours": measure_ours, "sb3": measure_sb3, "sbx": partial(measure_sb3, package="sbx")}
    functions |= {"environment": measure_environment, "arithmetic": measure_arithmetic}
    function = (functions | {"cleanrl": measure_cleanrl})[what]
    print(json.dumps(function(name, json.loads(flags), total_timesteps)))


def in_a_process(
    what: str, name: str, flags: dict[str, Any], total_timesteps: int, cores: int = 1
) -> dict[str, float]:
    """Starts `measure`, in an empty folder and with an empty cache of compiled code, on so many cores."""
    with tempfile.TemporaryDirectory() as folder:
        environ = os.environ | {"OMP_NUM_THREADS": f"{cores}", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/cache"}
        command = ["taskset", "--cpu-list", f"0-{cores - 1}", sys.executable, __file__, "measure"]
        command += ["--what", what, "--name", name]
        command += [f"--flags={json.dumps(flags)}", "--total-timesteps", str(total_timesteps)]
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what} {name} {flags} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(values: list[float]) -> str:
    """Median, and smallest to largest."""
    return f"{np.median(values):,.0f} ({min(values):,.0f}–{max(values):,.0f})"


def ratio(values: np.ndarray) -> str:
    """Median, and smallest to largest, of what is near 1."""
    return f"{np.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


@app.command
def compare(
    tasks: tuple[str, ...] = tuple(TASKS), repetitions: int = 3, cores: int = 1, cleanrl: Path | None = None
) -> None:
    """Ours, eager and compiled, with and without EnvPool, others, and the environments alone; prints tables.

    Args:
        tasks: of HalfCheetah-v5, Humanoid-v5, CartPole-v1 and Breakout.
        repetitions: how often everything is measured, in turn.
        cores: that each side may use.
        cleanrl: folder with CleanRL's patched scripts.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        script, flags, steps, peer = TASKS[task]
        flags = flags | {"env_id": task} | ({"threads": cores} if script == "ppo_atari" else {})
        compiled, sides = {"compile": True}, {"stable-baselines3": ("sb3", task, flags, steps)}
        if cleanrl:
            sides["CleanRL"] = ("cleanrl", str(cleanrl.resolve() / peer), flags, steps)
        sides["ours"] = ("ours", script, flags, steps)
        sides["ours --compile"] = ("ours", script, flags | compiled, steps)
        sides["environment alone"] = ("environment", script, flags, steps)
        if script == "ppo_atari":
            sides["ours --bf16"] = ("ours", script, flags | {"bf16": True}, steps)
            sides["ours --bf16 --compile"] = ("ours", script, flags | compiled | {"bf16": True}, steps)
        else:
            sides["SBX"] = ("sbx", task, flags, steps)
            env_id = f"benchmarks.envpool_envs:EnvPool/{task}"
            fast = flags | {"env_id": env_id, "vectorization": "vector_entry_point"}
            sides["ours, EnvPool"] = ("ours", script, fast, steps)
            sides["ours --compile, EnvPool"] = ("ours", script, fast | compiled, steps)
            sides["EnvPool alone"] = ("environment", script, fast, 4 * steps)
            sides["matrix products alone"] = ("arithmetic", script, flags, steps)
        results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for repetition in range(repetitions):
            for side, arguments in sides.items():
                results[side].append(in_a_process(*arguments, cores))
                print(f"{task} {repetition + 1}/{repetitions} {side}: {results[side][-1]}", file=sys.stderr)
        (RESULTS / f"{task}_{cores}.json").write_text(json.dumps(results, indent=1) + "\n")
        print_table(task, results)


def print_table(task: str, results: dict[str, list[dict[str, float]]]) -> None:
    """Prints what compare measured for one task as Markdown; ratios are within a repetition."""
    print(f"\n**{task}**\n")
    print("| | steps/s | times stable-baselines3 | environment / policy / update | gradients/s | compiling |")
    print("|---|---|---|---|---|---|")
    peer = [m["steps_per_second"] for m in results["stable-baselines3"]]
    for side, measurements in results.items():
        speeds = [m["steps_per_second"] for m in measurements]
        ratios = [speed / other for speed, other in zip(speeds, peer)]
        cells = [side, spread(speeds), ratio(ratios)]
        median = {key: np.median([m[key] for m in measurements]) for key in measurements[0]}
        shares = [f"{median[part]:.0%}" for part in ("environment", "policy", "update") if part in median]
        cells += [" / ".join(shares), f"{median['gradients']:,.0f}" if "gradients" in median else ""]
        cells += [f"{median['first_iterations']:.0f} s" if "compile" in side else ""]
        print(f"| {' | '.join(cells)} |")


@app.command
def sweep(num_envs: tuple[int, ...] = (1, 8, 64, 256), repetitions: int = 1) -> None:
    """Steps/s of the two MLP scripts against num_envs, with batches of 2,048 steps.

    Args:
        num_envs: numbers of environments.
        repetitions: how often everything is measured, in turn.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    cells = list(itertools.product(("HalfCheetah-v5", "CartPole-v1"), num_envs, (False, True)))
    results = {cell: [] for cell in cells}
    for (task, n, compiled), found in [item for _ in range(repetitions) for item in results.items()]:
        script, _, steps, _ = TASKS[task]
        flags = {"num_envs": n, "num_steps": 2048 // n, "num_minibatches": 4, "compile": compiled}
        flags |= {"target_kl": None}
        found.append(in_a_process("ours", script, flags, steps)["steps_per_second"])
        print(task, flags, found[-1], file=sys.stderr)
    names = ("task", "num_envs", "compile")
    rows = [dict(zip(names, cell)) | {"steps_per_second": found} for cell, found in results.items()]
    (RESULTS / "sweep.json").write_text(json.dumps(rows, indent=1) + "\n")
    for task in ("HalfCheetah-v5", "CartPole-v1"):
        print(f"\n| {task}, environments | eager | compiled |\n|---|---|---|")
        for n in num_envs:
            print(f"| {n} | {spread(results[task, n, False])} | {spread(results[task, n, True])} |")


@app.command
def sb3_curve(env_id: str, seed: int, csv: Path, total_timesteps: int = 1_000_000) -> None:
    """Trains stable-baselines3's PPO at its own defaults on one thread, and writes its curve as a CSV.

    Args:
        env_id: environment.
        seed: of the run.
        csv: file to write; the return is the mean of the last 100 training episodes.
        total_timesteps: environment steps to train for.
    """
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    class Curve(BaseCallback):
        def _on_training_start(self) -> None:
            self.start, self.rows = time.perf_counter(), []

        def _on_rollout_end(self) -> None:
            episodes = [episode["r"] for episode in self.model.ep_info_buffer]
            if episodes:
                seconds = time.perf_counter() - self.start
                self.rows.append(f"{self.num_timesteps},{seconds:.1f},{np.mean(episodes):.2f}")

        def _on_step(self) -> bool:
            return True

    torch.set_num_threads(1)
    curve = Curve()
    PPO("MlpPolicy", env_id, seed=seed, device="cpu").learn(total_timesteps, callback=curve)
    command = f"python benchmarks/speed.py sb3-curve --env-id {env_id} --seed {seed}"
    versions = {name: version(name) for name in ("stable_baselines3", "torch", "gymnasium", "mujoco")}
    about = {"command": command, "machine": MACHINE, "versions": versions}
    csv.parent.mkdir(parents=True, exist_ok=True)
    rows = [curve.rows[i] for i in np.unique(np.linspace(0, len(curve.rows) - 1, 100).round().astype(int))]
    header = [f"# {json.dumps(about)}", "step,seconds,return_last_100_episodes"]
    csv.write_text("\n".join(header + rows) + "\n")


@app.command
def race(
    env_ids: tuple[str, ...] = ("HalfCheetah-v5", "Walker2d-v5"),
    seeds: tuple[int, ...] = (1, 2, 3),
    jobs: int = 2,
) -> None:
    """Return against seconds: ours, with --compile, and stable-baselines3, each at its own defaults.

    Runs that have their CSV in benchmarks/results/race_2/ are not trained again.

    Args:
        env_ids: environments.
        seeds: of both.
        jobs: trainings at a time, each with one thread.
    """
    ours = {"ours": (), "ours, --compile": ("--compile",)}
    csvs = {(side, e): [] for side in (*ours, "stable-baselines3") for e in env_ids}
    folder = f"race{AGAIN}"
    for seed in seeds:  # all sides of a seed next to each other, so that a machine that drifts does for all
        runs = [
            returns.Run(f"{folder}/{'compiled' if flags else 'eager'}", "ppo_continuous", env_id, seed, flags)
            for flags in ours.values()
            for env_id in env_ids
        ]
        returns.train_all(runs, jobs)
        with ThreadPoolExecutor(jobs) as pool:
            peers = returns.RESULTS / folder / "stable_baselines3"
            paths = [peers / f"{env_id}__{seed}.csv" for env_id in env_ids]
            list(pool.map(train_sb3, env_ids, [seed] * len(env_ids), paths))
        for key, path in zip(csvs, [*(run.csv for run in runs), *paths]):
            csvs[key].append(path)

    def paint(axes: np.ndarray, colors: list[str]) -> None:
        for ax, env_id in zip(axes[0], env_ids):
            for side, color in zip((*ours, "stable-baselines3"), (colors[0], colors[2], colors[1])):
                seconds, values = returns.curves(csvs[side, env_id], against=1)
                ax.plot(seconds, values.T, color=color, alpha=0.3, linewidth=0.8)
                ax.plot(seconds, values.mean(0), color=color, linewidth=2.2, label=side)
            ax.set(title=env_id, xlabel="seconds of training")
        axes[0, 0].set_ylabel("return of the last 100 episodes")
        axes[0, 0].legend(frameon=False)

    returns.draw("race", (10, 3.4), (1, len(env_ids)), paint)
    print("| | | seconds for a million steps | return, each seed |\n|---|---|---|---|")
    for (side, env_id), paths in csvs.items():
        last = [returns.read(path)[1][-1] for path in paths]
        each = (" ".join(f"{row[column]:.0f}" for row in last) for column in (1, 2))
        print(f"| {env_id} | {side} | {' | '.join(each)} |")


@app.command
def processes(
    env_id: str = "HalfCheetah-v5", seeds: tuple[int, ...] = (1, 2, 3), steps: int = 300_000
) -> None:
    """Steps/s and returns with one and two processes, at the defaults and with twice the environments.

    Twice the environments are a batch and minibatches of twice the size, in the same number of minibatches.
    Runs that have their CSV in benchmarks/results/processes_2/ are not trained again.

    Args:
        env_id: environment.
        seeds: of each setting.
        steps: environment steps of a training.
    """
    settings = {f"{n}_processes_{envs}_envs": (n, envs) for envs in (16, 32) for n in (1, 2)}
    rows = {name: [] for name in settings}
    for seed in seeds:  # all settings of a seed are trained one after the other
        for name, (n, envs) in settings.items():
            flags = ("--num-envs", str(envs), "--total-timesteps", str(steps))
            run = returns.Run(f"processes{AGAIN}/{name}", "ppo_continuous", env_id, seed, flags, n)
            returns.train_all([run], jobs=1)
            rows[name].append(returns.read(run.csv)[1][-1])
    print("| processes | environments | steps/s, each seed | times one process | return, each seed |")
    print("|---|---|---|---|---|")
    alone = np.array([row[0] / row[1] for row in rows["1_processes_16_envs"]])
    for name, (n, envs) in settings.items():
        speed = np.array([row[0] / row[1] for row in rows[name]])
        each = (
            " ".join(f"{x:.0f}" for x in speed),
            ratio(speed / alone),
            " ".join(f"{row[2]:.0f}" for row in rows[name]),
        )
        print(f"| {n} | {envs} | {' | '.join(each)} |")


class Slow(gym.Wrapper):
    """An environment that takes that many milliseconds more for a step, in which it computes."""

    def __init__(self, env: gym.Env, milliseconds: float) -> None:
        super().__init__(env)
        self.seconds = milliseconds / 1e3

    def step(self, action: np.ndarray) -> tuple:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        return self.env.step(action)


def make_slow(milliseconds: float, **kwargs: Any) -> gym.Env:
    return Slow(gym.make("Pendulum-v1", **kwargs), milliseconds)


@app.command
def slow(milliseconds: tuple[float, ...] = (0, 0.1, 0.3, 1, 3), repeats: int = 3) -> None:
    """Steps per second of 16 Pendulums, each slowed down, in one process and in 16.

    Args:
        milliseconds: that each step of each environment takes longer.
        repeats: of each measurement, in turn.
    """
    sys.path.insert(0, str(ROOT))
    ppo = importlib.import_module("ppo_continuous")
    speeds = {f"{ms}": {"sync": [], "async": []} for ms in milliseconds}
    for _ in range(repeats):
        for ms, of_modes in speeds.items():
            make = partial(make_slow, float(ms))
            gym.register("Slow-v0", make)
            for mode, found in of_modes.items():
                envs = ppo.make_envs(ppo.Args("Slow-v0", vectorization=mode), 16)
                envs.reset(seed=1)
                actions, begin, steps = np.zeros((16, 1), np.float32), time.perf_counter(), 0
                while time.perf_counter() < begin + 2:
                    envs.step(actions)
                    steps += 16
                found.append(steps / (time.perf_counter() - begin))
                envs.close()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "slow.json").write_text(json.dumps(speeds, indent=1) + "\n")
    print("| ms a step | sync, steps/s | async | times sync |\n|---|---|---|---|")
    for ms, of_modes in speeds.items():
        sync, own = np.array(of_modes["sync"]), np.array(of_modes["async"])
        print(f"| {ms} | {spread(sync)} | {spread(own)} | {ratio(own / sync)} |")


def train_sb3(env_id: str, seed: int, csv: Path) -> None:
    """Starts `sb3-curve`, unless its CSV is there."""
    if not csv.exists():
        command = [sys.executable, __file__, "sb3-curve", "--env-id", env_id]
        command += ["--seed", str(seed), "--csv", str(csv)]
        environ = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"stable-baselines3 on {env_id} failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    app.cli(description=__doc__.split("\n")[0])
