"""The speed of the scripts, beside others and the environments alone.

    python benchmarks/speed.py compare --cleanrl FOLDER
    python benchmarks/speed.py growth
    python benchmarks/speed.py race

`compare` measures each side in a process of its own, one at a time, in turn, several times over, so that a
machine that drifts does so for all. All sides have the same environments, steps, minibatches, epochs and
networks; none scales observations or rewards, or stops an update early. FOLDER has CleanRL's scripts,
patched as benchmarks/README.md says; without, they are left out. `growth` measures the fast
variant with more and more environments. `race` trains ours and stable-baselines3 and draws return against
seconds. Leave the machine alone meanwhile.
"""

import contextlib
import importlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import returns
from returns import RESULTS, ROOT, Run
from tyro.extras import SubcommandApp

WARM_UP = 3  # iterations that do not count, over all that is compiled, allocated and cached in them
EQUAL = {"num_envs": 8, "num_steps": 256, "num_minibatches": 8, "update_epochs": 10, "target_kl": None}
EQUAL |= {"norm_obs": False, "norm_reward": False}
ATARI = {"num_envs": 8, "num_steps": 128, "num_minibatches": 4, "update_epochs": 4, "device": "cpu"}
PIXELS = ATARI | {"env_kwargs": {"continuous": False}, "norm_reward": False}
TASKS = {  # name: script, flags, steps of a measurement, CleanRL's script
    "HalfCheetah-v5": ("ppo_continuous", EQUAL, 32_000, "ppo_continuous_action.py"),
    "Humanoid-v5": ("ppo_continuous", EQUAL, 16_384, "ppo_continuous_action.py"),
    "Hopper-v5": ("ppo_continuous", EQUAL, 32_000, "ppo_continuous_action.py"),
    "Walker2d-v5": ("ppo_continuous", EQUAL, 32_000, "ppo_continuous_action.py"),
    "CartPole-v1": ("ppo_discrete", EQUAL, 40_000, "ppo.py"),
    "Breakout": ("ppo_atari", ATARI, 7_168, "ppo_atari.py"),
    "popgym:popgym-RepeatPreviousEasy-v0": ("ppo_lstm_discrete", EQUAL, 40_000, ""),
    "Taxi-v4": ("ppo_masks_discrete", EQUAL, 40_000, ""),
    "CarRacing-v3": ("ppo_pixels_discrete", PIXELS, 7_168, ""),
}
SB3 = "stable-baselines3"
app = SubcommandApp()


# ---- Measurements: each is one process, and prints one line of JSON ----
def load(script: str, flags: dict[str, Any]) -> tuple[Any, Any]:
    """The script as a module, and its arguments."""
    ppo = importlib.import_module(script)
    return ppo, ppo.Args(**flags)


def measure_ours(script: str, flags: dict[str, Any], steps: int) -> dict[str, float]:
    """Trains, and splits the seconds after WARM_UP iterations: environment, policy (the rest of collect), and
    the update with all else."""
    ppo, args = load(script, flags | {"total_timesteps": steps})
    spent, starts = {"environment": 0.0, "collect": 0.0}, []

    def timed(part: str, function: Any, *args: Any) -> Any:
        start = time.perf_counter()
        result = function(*args)
        spent[part] += (time.perf_counter() - start) * (len(starts) > WARM_UP)
        return result

    maker = "Pool" if hasattr(ppo, "Pool") else "make_envs"  # the fast variant trains on a Pool
    make_envs, collect = getattr(ppo, maker), ppo.collect

    def make_timed_envs(*args: Any) -> Any:
        envs = make_envs(*args)
        envs.step = partial(timed, "environment", envs.step)
        return envs

    def timed_collect(*args: Any) -> Any:
        starts.append(time.perf_counter())
        return timed("collect", collect, *args)

    setattr(ppo, maker, make_timed_envs)
    ppo.collect = timed_collect
    ppo.train(args, Path("run"))
    starts.append(time.perf_counter())  # the end
    iterations, seconds = len(starts) - 1 - WARM_UP, starts[-1] - starts[WARM_UP]
    return {
        "steps_per_second": iterations * args.num_envs * args.num_steps / seconds,
        "environment": spent["environment"] / seconds,
        "policy": (spent["collect"] - spent["environment"]) / seconds,
        "update": 1 - spent["collect"] / seconds,
    }


def measure_sb3(
    script: str, flags: dict[str, Any], steps: int, package: str = "stable_baselines3"
) -> dict[str, float]:
    """Trains a PPO of stable-baselines3, sb3-contrib or sbx with the flags of our script."""
    import sb3

    model = sb3.make_model(script, load(script, flags)[1], package)
    collect, starts = model.collect_rollouts, []

    def timed(*args: Any, **kwargs: Any) -> bool:
        starts.append((time.perf_counter(), model.num_timesteps))
        return collect(*args, **kwargs)

    model.collect_rollouts = timed
    model.learn(steps)
    (start, first), (end, last) = starts[WARM_UP], starts[-1]
    return {"steps_per_second": (last - first) / (end - start)}


def measure_sbx(script: str, flags: dict[str, Any], steps: int) -> dict[str, float]:
    return measure_sb3(script, flags, steps, "sbx")


def measure_cleanrl(path: str, flags: dict[str, Any], steps: int) -> dict[str, float]:
    """Runs a patched script of CleanRL's. It prints its mean speed from its start after each iteration."""
    names = ("num_envs", "num_steps", "num_minibatches", "update_epochs", "env_id")
    command = [sys.executable, path, "--no-cuda", f"--total-timesteps={steps}"]
    command += [f"--{name.replace('_', '-')}={flags[name]}" for name in names]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    means = np.array([int(mean) for mean in re.findall(r"SPS: (\d+)", out)])
    counts = flags["num_envs"] * flags["num_steps"] * np.arange(1, len(means) + 1)
    speed = (counts[-1] - counts[WARM_UP - 1]) / ((counts / means)[-1] - (counts / means)[WARM_UP - 1])
    return {"steps_per_second": speed}


def measure_rl_games(env_id: str, flags: dict[str, Any], steps: int) -> dict[str, float]:
    """Trains rl_games' PPO, which compiles by itself, on EnvPool. It prints the speed of each iteration."""
    import yaml
    from rl_games import __file__ as package
    from rl_games.torch_runner import Runner

    config = yaml.safe_load((Path(package).parent / "configs/mujoco/halfcheetah_envpool.yaml").read_text())
    batch_size = flags["num_envs"] * flags["num_steps"]
    mlp = {"units": [64, 64], "activation": "tanh", "initializer": {"name": "default"}}
    config["params"]["network"] |= {"separate": True, "mlp": mlp}
    config["params"]["config"] |= {
        "num_actors": flags["num_envs"],
        "horizon_length": flags["num_steps"],
        "minibatch_size": batch_size // flags["num_minibatches"],
        "mini_epochs": flags["update_epochs"],
        "max_epochs": steps // batch_size,
        "lr_schedule": "linear",
        **dict.fromkeys(("normalize_input", "normalize_value"), False),
        **dict.fromkeys(("device", "device_name"), "cpu"),
        "env_config": {"env_name": env_id, "num_threads": int(os.environ["OMP_NUM_THREADS"])},
    }
    runner = Runner()
    runner.load(config)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runner.run({"train": True})
    speeds = [float(speed) for speed in re.findall(r"fps total: (\d+)", out.getvalue())][WARM_UP:]
    return {"steps_per_second": len(speeds) / sum(1 / speed for speed in speeds)}


def measure_arithmetic(script: str, flags: dict[str, Any], steps: int) -> dict[str, float]:
    """Only the matrix products of the updates: of each layer one forward and two backward, for each row."""
    import torch

    ppo, args = load(script, flags)
    agent = ppo.Agent(ppo.make_envs(args, 1), args)
    rows, count = args.num_envs * args.num_steps // args.num_minibatches, 2_000
    layers = [module for module in agent.modules() if isinstance(module, torch.nn.Linear)]
    pairs = [(torch.rand(rows, m.in_features), torch.rand(rows, m.out_features), m.weight) for m in layers]
    start = time.perf_counter()
    with torch.no_grad():
        for _ in range(count):
            for x, y, weight in pairs:
                _ = x @ weight.T, y @ weight, y.T @ x
    minibatches_per_second = count / (time.perf_counter() - start)
    return {"steps_per_second": rows / args.update_epochs * minibatches_per_second}


def measure_environment(script: str, flags: dict[str, Any], steps: int) -> dict[str, float]:
    """Steps the script's environments with random actions."""
    ppo, args = load(script, flags)
    envs = ppo.make_envs(args, args.num_envs)
    envs.reset(seed=list(range(args.num_envs)))
    envs.action_space.seed(1)
    actions = [envs.action_space.sample() for _ in range(64)]
    if hasattr(ppo, "Pool"):
        envs = ppo.Pool(args, list(range(args.num_envs)))
        envs.pool.reset()
    start = time.perf_counter()
    for step in range(steps // args.num_envs):
        envs.step(actions[step % 64])
    return {"steps_per_second": steps / (time.perf_counter() - start)}


@app.command
def measure(what: str, name: str, flags: str, steps: int) -> None:
    """One measurement, printed as JSON; compare starts this in processes of their own."""
    print(json.dumps(globals()[f"measure_{what}"](name, json.loads(flags), steps)))


def in_a_process(
    what: str, name: str, flags: dict[str, Any], steps: int, cores: int, cache: str, root: Path = ROOT
) -> dict[str, float]:
    """Starts `measure` of a checkout in an empty folder on so many cores; cache is for compiled code."""
    environ = os.environ | {"OMP_NUM_THREADS": f"{cores}", "TORCHINDUCTOR_CACHE_DIR": cache}
    command = ["taskset", "--cpu-list", f"0-{cores - 1}", sys.executable]
    command += [str(root / "benchmarks/speed.py"), "measure", "--what", what, "--name", name]
    command += [f"--flags={json.dumps(flags)}", "--steps", str(steps)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what} {name} {flags} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def sides_of(task: str, cores: int, cleanrl: Path | None, before: Path | None) -> dict[str, tuple]:
    """What is measured in a task: label and arguments of in_a_process."""
    script, flags, steps, peer = TASKS[task]
    flags = flags | {"env_id": task} | ({"threads": cores} if script == "ppo_atari" else {})
    sides = {SB3: ("sb3", script, flags, steps)}
    if cleanrl and peer:
        sides["CleanRL"] = ("cleanrl", str(cleanrl.resolve() / peer), flags, steps)
    sides["ours"] = ("ours", script, flags, steps)
    if script == "ppo_continuous":
        fast = "ppo_fast_continuous", flags | {"threads": cores}, steps
        sides["ours, fast"] = ("ours", *fast)
        if before:
            engine = {"env_id": f"benchmarks.envpool_envs:EnvPool/{task}", "compile": True}
            engine |= {"vectorization": "vector_entry_point"}
            sides["8c6aa01 --compile, EnvPool"] = ("ours", script, flags | engine, steps, before.resolve())
        sides["rl_games, EnvPool"] = ("rl_games", task, flags, steps)
        sides["EnvPool alone"] = ("environment", *fast)
    if script in ("ppo_continuous", "ppo_discrete"):
        sides["SBX"] = ("sbx", script, flags, steps)
        sides["matrix products alone"] = ("arithmetic", script, flags, steps)
    if script == "ppo_atari" and "bf16" in Path("/proc/cpuinfo").read_text():  # else a tenth of the speed
        sides["ours --bf16"] = ("ours", script, flags | {"bf16": True}, steps)
    sides["environment alone"] = ("environment", script, flags, steps)
    return sides


@app.command
def compare(
    tasks: tuple[str, ...] = ("HalfCheetah-v5", "Humanoid-v5", "CartPole-v1", "Breakout"),
    only: tuple[str, ...] = (),
    repetitions: int = 5,
    cores: int = 1,
    cleanrl: Path | None = None,
    before: Path | None = None,
) -> None:
    """Ours, others, and the environments alone; prints tables.

    Args:
        tasks: names of TASKS.
        only: sides to measure besides stable-baselines3; all if empty.
        repetitions: how often everything is measured, in turn.
        cores: that each side may use.
        cleanrl: folder with CleanRL's patched scripts.
        before: checkout of 8c6aa01, whose script compiles and runs on EnvPool.
    """
    for task in tasks:
        rows, sides = [], sides_of(task, cores, cleanrl, before)
        sides = {side: what for side, what in sides.items() if not only or side in (SB3, *only)}
        with tempfile.TemporaryDirectory() as cache:  # only the first repetition compiles
            for repetition, (side, what) in itertools.product(range(repetitions), sides.items()):
                measured = in_a_process(*what[:4], cores, f"{cache}/{len(rows) % len(sides)}", *what[4:])
                rows.append({"task": task, "cores": cores, "side": side, "repetition": repetition} | measured)
                print(rows[-1], file=sys.stderr)
        path = RESULTS / "speed.csv"
        rows = pd.DataFrame(rows).round(4).assign(commit=returns.commit(f"{TASKS[task][0]}.py"))
        pd.concat([pd.read_csv(path), rows] if path.exists() else [rows]).to_csv(path, index=False)
        print("gradient steps an iteration: {num_minibatches} x {update_epochs}\n".format(**TASKS[task][1]))
        print_table(rows)


def spread(values: np.ndarray, digits: str = ",.0f") -> str:
    """Median, and smallest to largest."""
    return f"{np.median(values):{digits}} ({min(values):{digits}}–{max(values):{digits}})"


def print_table(rows: pd.DataFrame) -> None:
    """Prints what compare measured for one task as Markdown; ratios are within a repetition."""
    print("| | steps/s | times stable-baselines3 | environment / policy / update |")
    print("|---|---|---|---|")
    peer = rows.loc[rows["side"] == SB3, "steps_per_second"].to_numpy()
    for side, of_side in rows.groupby("side", sort=False):
        speeds, median = of_side["steps_per_second"].to_numpy(), of_side.median(numeric_only=True)
        shares = [f"{median[part]:.0%}" for part in ("environment", "policy", "update")]
        cells = [side, spread(speeds), spread(speeds / peer, ".2f"), " / ".join(shares)]
        print(f"| {' | '.join(cells)} |".replace("nan% / nan% / nan%", "").replace("nan", ""))


@app.command
def growth(task: str = "HalfCheetah-v5", counts: tuple[int, ...] = (4, 16, 64, 256, 1024)) -> None:
    """Steps/s of the fast variant and of EnvPool alone against environments, of 64 steps each, with a thread
    and with two, each on a core of its own; prints a table, and draws it."""
    path, rows = RESULTS / "growth.csv", []
    with tempfile.TemporaryDirectory() as cache:
        for num_envs, cores in itertools.product(counts, (1, 2)):
            flags = EQUAL | {"env_id": task, "num_envs": num_envs, "num_steps": 64, "threads": cores}
            for side, what in {"training": "ours", "EnvPool alone": "environment"}.items():
                of_side = what, "ppo_fast_continuous", flags, max(32_768, 384 * num_envs), cores, cache
                row = {"task": task, "num_envs": num_envs, "cores": cores, "side": side}
                rows.append(row | in_a_process(*of_side))
                print(rows[-1], file=sys.stderr)
    rows = pd.DataFrame(rows).round(4)
    rows.to_csv(path, index=False)
    speeds = rows.pivot(index=["side", "cores"], columns="num_envs", values="steps_per_second")
    print(f"| | threads | {' | '.join(map(str, counts))} |\n|---|---|{'---|' * len(counts)}")
    for (side, cores), values in speeds.iterrows():
        print(f"| {side} | {cores} | {' | '.join(f'{value:,.0f}' for value in values)} |")

    def paint(axes: np.ndarray, colors: list[str]) -> None:
        for (side, cores), values in speeds.iterrows():
            style = {"color": colors[side == "training"], "linestyle": "-" if cores == 2 else "--"}
            axes[0, 0].plot(counts, values, marker="o", label=f"{side}, threads: {cores}", **style)
        axes[0, 0].set(xscale="log", xticks=counts, xticklabels=counts, xlabel="environments", ylim=0)
        axes[0, 0].set_ylabel("steps/s")
        axes[0, 0].legend(frameon=False)

    returns.draw("growth", (7, 3.6), (1, 1), paint)


@app.command
def race(env_id: str = "HalfCheetah-v5", seeds: tuple[int, ...] = (1, 2, 3)) -> None:
    """Return against seconds: ours and stable-baselines3 at its own defaults and rl-zoo's, two at a time with
    one thread each. What is in results/race.csv is not trained again."""
    sides = [("variants/ppo_fast_continuous", ""), ("ppo_continuous", "")]
    sides += [("benchmarks/sb3", ""), ("benchmarks/sb3", "--like zoo")]
    for seed in seeds:  # next to each other, so that a machine that drifts does for all
        runs = [Run("race", script, env_id, seed, setting) for script, setting in sides]
        returns.train_all(runs, jobs=2)
    returns.figure("race", against="seconds")


if __name__ == "__main__":
    app.cli(description=__doc__.split("\n")[0])
