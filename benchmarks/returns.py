"""The returns that the scripts reach: trains environments x seeds as processes of their own.

    python benchmarks/returns.py run --setting continuous --seeds 11 12 13 --env-ids Hopper-v5 Ant-v5
    python benchmarks/returns.py table --settings continuous
    python benchmarks/returns.py figure --setting continuous

`run` writes one CSV for each run into benchmarks/results/<setting>/. Runs that have theirs are skipped, and
runs that were stopped go on from their checkpoint, so the same command again finishes what is left. The
return is the one that the scripts log: the mean of the last 100 training episodes, in the environment's own
rewards.
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm
from tyro.extras import SubcommandApp

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "benchmarks" / "figures"
MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Swimmer-v5")
# The best mean over several seeds published for PPO, the task's version in brackets; sources: README.md.
PUBLISHED = {
    "HalfCheetah-v5": (5650, "Tianshou (v3)"),
    "Hopper-v5": (2483, "Tianshou (v3)"),
    "Walker2d-v5": (3674, "ikostrikov (v2)"),
    "Ant-v5": (1023, "Tianshou (v4)"),
    "Humanoid-v5": (742, "CleanRL (v4)"),
    "Swimmer-v5": (111, "baselines (v1)"),
    "CartPole-v1": (497, "baselines"),
    "Acrobot-v1": (-81, "SLM-Lab"),
    "LunarLander-v3": (183, "SLM-Lab"),
    "MountainCar-v0": (-110, "rl-zoo"),
}
app = SubcommandApp()


@dataclass(frozen=True)
class Run:
    """One training: what it is called, and the command that it is."""

    setting: str
    script: str
    env_id: str
    seed: int
    flags: tuple[str, ...]
    processes: int = 1

    @property
    def csv(self) -> Path:
        return RESULTS / self.setting / f"{re.sub('[/:]', '_', self.env_id)}__{self.seed}.csv"

    @property
    def folder(self) -> Path:
        """Where the script leaves its own run folder; ignored by git."""
        return ROOT / "benchmarks" / "runs" / self.setting / self.csv.stem

    @property
    def arguments(self) -> list[str]:
        return [f"{self.script}.py", "--env-id", self.env_id, "--seed", str(self.seed), *self.flags]

    @property
    def launcher(self) -> str:
        """What starts the script, as a user would write it."""
        return "python" if self.processes == 1 else f"torchrun --standalone --nproc-per-node {self.processes}"


def train(run: Run, may_diverge: bool = False) -> str:
    """Trains to the end, from a checkpoint where there is one, and writes the CSV. Returns the evaluation."""
    run.folder.mkdir(parents=True, exist_ok=True)
    checkpoints = sorted(run.folder.glob("runs/*/checkpoint.pt"))
    resume = ["--resume", str(checkpoints[-1])] if checkpoints else []
    launcher = run.launcher.replace("torchrun", "-m torch.distributed.run").removeprefix("python").split()
    command = [sys.executable, *launcher, str(ROOT / run.arguments[0]), *run.arguments[1:], *resume]
    environ = os.environ | {"OMP_NUM_THREADS": "1"}  # processes side by side must not fight for cores
    with (run.folder / "stdout").open("w") as out, (run.folder / "stderr").open("w") as err:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        code = subprocess.run(command, cwd=run.folder, env=environ, **pipes).returncode
    if code:
        evaluation = "".join((run.folder / "stderr").read_text().strip().splitlines()[-1:])
        if not (may_diverge and evaluation.startswith("FloatingPointError: not finite")):
            raise RuntimeError(f"{shlex.join(run.arguments)} ended with {code}: {evaluation}")
    else:
        evaluation = (run.folder / "stdout").read_text().strip().splitlines()[-1]
    run_dirs = run.folder.glob("runs/*")  # all but the newest were killed before they saved
    write_csv(run, max(run_dirs, key=lambda path: path.stat().st_mtime), evaluation)
    return evaluation


def write_csv(run: Run, run_dir: Path, evaluation: str, points: int = 100) -> None:
    """About 100 rows (step, seconds, return, KL, clip fraction) of what was logged, below how they came."""
    tags = ("episodic_return", "approx_kl", "clip_fraction")
    logged, spent = {tag: {} for tag in tags}, {}
    for path in sorted(run_dir.glob("events.*")):  # one for each start; the later one's steps count
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for tag in set(tags) & set(events.Tags()["scalars"]):
            logged[tag] |= {event.step: event.value for event in events.Scalars(tag)}
        kl = events.Scalars("approx_kl") if "approx_kl" in events.Tags()["scalars"] else []
        times = [events.FirstEventTimestamp(), *(event.wall_time for event in kl)] if kl else [0]
        spent |= {event.step: second for event, second in zip(kl, np.diff(times))}
    steps = sorted(spent)
    seconds = np.cumsum([spent[t] for t in steps])  # of training alone, pauses left out
    rows = [(t, second, *(logged[tag].get(t, np.nan) for tag in tags)) for t, second in zip(steps, seconds)]
    # Before the first episode ended there is no return; what diverged in its first iteration logged nothing.
    rows = [row for row in rows if np.isfinite(row[2])] or rows[-1:] or [(0, 0.0, *[np.nan] * len(tags))]
    rows = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, points).round().astype(int))]
    packages = ("torch", "gymnasium", "mujoco", "numpy")
    about = {
        "command": f"{run.launcher} {shlex.join(run.arguments)}",
        "evaluation": evaluation,
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
    }
    run.csv.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# {json.dumps(about)}", "step,seconds,return_last_100_episodes,approx_kl,clip_fraction"]
    lines += ["{},{:.1f},{:.2f},{:.5f},{:.4f}".format(*row) for row in rows]
    temporary = run.csv.with_suffix(".tmp")
    temporary.write_text("\n".join(lines) + "\n")
    os.replace(temporary, run.csv)


@app.command(name="run")
def run_all(
    setting: str,
    seeds: tuple[int, ...],
    env_ids: tuple[str, ...] = MUJOCO,
    script: str = "ppo_continuous",
    flags: str = "",
    jobs: int = 2,
) -> None:
    """Trains every environment with every seed, as many at a time as there are jobs.

    Args:
        setting: name of the folder of results; one set of flags should have one name.
        seeds: each is a run in each environment.
        env_ids: environments, all with the same flags.
        script: ppo_continuous, ppo_discrete, ppo_atari, or one of variants/, without ".py".
        flags: flags for the script, in one string: --flags="--gae-lambda 0.9".
        jobs: processes at a time, each with one thread.
    """
    split = tuple(shlex.split(flags))
    train_all([Run(setting, script, env_id, seed, split) for seed in seeds for env_id in env_ids], jobs)


def train_all(runs: list[Run], jobs: int, may_diverge: bool = False) -> None:
    """Trains those runs that have no CSV yet, as many at a time as there are jobs; exits if one fails.

    With may_diverge, a run whose loss stops being finite has not failed: its CSV ends there."""
    left = [run for run in runs if not run.csv.exists()]
    failures = []
    bar = tqdm(total=len(runs), initial=len(runs) - len(left), unit=" runs")
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(train, run, may_diverge): run for run in left}
        try:
            for future in as_completed(futures):
                run = futures[future]
                if error := future.exception():
                    failures.append(str(error))
                bar.write(str(error or f"{run.env_id} seed {run.seed}: {final_return(run.csv):.1f}"))
                bar.update()
        except KeyboardInterrupt:  # the scripts got it too
            pool.shutdown(cancel_futures=True)
            sys.exit("interrupted: the same command goes on from the checkpoints")
    bar.close()
    if failures:
        sys.exit(f"{len(failures)} of {len(left)} runs failed; the same command tries them again")


def read(path: Path) -> tuple[dict, np.ndarray]:
    """What a CSV says about its run, and its rows (n, columns)."""
    first, _, *rows = path.read_text().splitlines()
    return json.loads(first[2:]), np.array([[float(x) for x in row.split(",")] for row in rows])


def final_return(path: Path) -> float:
    """The mean return of the last 100 training episodes."""
    return read(path)[1][-1, 2]


def evaluation(path: Path) -> float:
    """The mean return of the evaluation at the end; earlier commits wrote "return 1.0 ± 2.0"."""
    return float(re.search(r"return ([^\s,]+)", read(path)[0]["evaluation"])[1])


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half of the last axis (Agarwal et al. 2021); cut values count by their part."""
    n = values.shape[-1]
    weights = np.clip(np.minimum(np.arange(1, n + 1) - n / 4, n - n / 4 - np.arange(n)), 0, 1)
    return (np.sort(values, -1) * weights).sum(-1) / weights.sum()


def bootstrap(values: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """The 95% percentile interval of the interquartile mean over seeds drawn again with replacement."""
    draws = np.random.default_rng(0).choice(values, (resamples, len(values)))
    return tuple(np.percentile(interquartile_mean(draws), (2.5, 97.5)))


def environments(setting: str) -> dict[str, list[Path]]:
    """The CSVs of a setting by environment, ordered by seed."""
    found: dict[str, list[Path]] = {}
    for path in sorted((RESULTS / setting).glob("*__*.csv"), key=lambda p: int(p.stem.split("__")[1])):
        found.setdefault(path.stem.split("__")[0], []).append(path)
    if not found:
        sys.exit(f"no results in {RESULTS / setting}: run them first")
    known = {env_id: found.pop(env_id) for env_id in PUBLISHED if env_id in found}
    return known | found


@app.command
def table(settings: tuple[str, ...]) -> None:
    """Prints each setting as a Markdown table: every seed, mean, interquartile mean, evaluation.

    Args:
        settings: folders of results.
    """
    for setting in settings:
        print(f"\n**{setting}**\n")
        print("| environment | seeds | each seed | mean | IQM [95%] | evaluation, mean | best published |")
        print("|---|---|---|---|---|---|---|")
        for env_id, paths in environments(setting).items():
            values = np.array([final_return(path) for path in paths])
            low, high = bootstrap(values)
            evaluated = np.mean([evaluation(path) for path in paths])
            seeds = [path.stem.split("__")[1] for path in paths]
            best = "{} {}".format(*PUBLISHED[env_id]) if env_id in PUBLISHED else ""
            each = " ".join(f"{value:.0f}" for value in values)
            print(
                f"| {env_id} | {seeds[0]}–{seeds[-1]} | {each} | **{values.mean():.0f}** "
                f"| {interquartile_mean(values):.0f} [{low:.0f}, {high:.0f}] | {evaluated:.0f} | {best} |"
            )


def draw(name: str, size: tuple[float, float], shape: tuple[int, int], paint: Callable) -> None:
    """Saves benchmarks/figures/<name>_light.png and _dark.png, for light and dark pages; paint(axes, colors)
    draws them, with axes of this shape and the colors blue, red, green and ink."""
    import matplotlib.pyplot as plt

    FIGURES.mkdir(exist_ok=True)
    for theme, ink, *colors in (
        ("light", "#1f2328", "#0969da", "#cf222e", "#1a7f37"),
        ("dark", "#e6edf3", "#58a6ff", "#ff7b72", "#3fb950"),
    ):
        parts = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        with plt.rc_context(
            dict.fromkeys(parts, ink)
            | {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}
        ):
            fig, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
            paint(axes, [*colors, ink])
            fig.savefig(FIGURES / f"{name}_{theme}.png", dpi=160, transparent=True)
            plt.close(fig)


@app.command
def figure(setting: str, name: str = "returns") -> None:
    """Draws the learning curves of a setting, once for light and once for dark pages.

    Args:
        setting: folder of results.
        name: of the pictures in benchmarks/figures, less "_light.png" and "_dark.png".
    """
    by_env = environments(setting)
    rows = -(-len(by_env) // 3)

    def paint(axes: np.ndarray, colors: list[str]) -> None:
        line, best, *_ = colors
        for ax in axes.flat[len(by_env) :]:
            ax.axis("off")
        for ax, (env_id, paths) in zip(axes.flat, by_env.items()):
            grid, values = curves(paths)
            ax.plot(grid / 1e6, values.T, color=line, alpha=0.25, linewidth=0.8)
            ax.plot(grid / 1e6, values.mean(0), color=line, linewidth=2.2)
            ax.set_title(env_id, fontsize=12)
            if env_id in PUBLISHED:
                value, source = PUBLISHED[env_id]
                ax.axhline(value, color=best, linewidth=1.2, linestyle=(0, (5, 3)))
                note = {"xytext": (2, 3), "textcoords": "offset points", "fontsize": 9}
                ax.annotate(f"{source}: {value}", (0, value), color=best, **note)
                ax.set_ylim(top=max(ax.get_ylim()[1], value * 1.15))
            ax.set_ylim(bottom=min(0, values.min()))
            ax.set_xticks(np.linspace(0, round(grid[-1] / 1e6, 1), 3))
        axes[0, 0].figure.supxlabel("million environment steps", fontsize=11)
        axes[0, 0].figure.supylabel("return of the last 100 episodes", fontsize=11)

    draw(name, (10, 2.7 * rows), (rows, 3), paint)


def curves(paths: list[Path], against: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The returns (R, 200) of R runs on a common grid (200,) of steps, or of seconds with against = 1."""
    rows = [read(path)[1] for path in paths]
    grid = np.linspace(max(r[0, against] for r in rows), min(r[-1, against] for r in rows), 200)
    return grid, np.array([np.interp(grid, r[:, against], r[:, 2]) for r in rows])


if __name__ == "__main__":
    app.cli(description=__doc__.split("\n")[0])
