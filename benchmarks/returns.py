"""The returns that the scripts reach: trains environments x seeds, each run in a process of its own.

    python benchmarks/returns.py run --table continuous --seeds 21 22 23 --env-ids Hopper-v5 Ant-v5
    python benchmarks/returns.py table --name continuous
    python benchmarks/returns.py figure --name continuous
    python benchmarks/returns.py duel --name fast_returns --sides ppo_continuous variants/ppo_fast_continuous

`run` appends each finished run to benchmarks/results/<table>.csv. Runs that are there are skipped, and runs
that were stopped go on from their checkpoint, so the same command again finishes what is left. The return is
the one that the scripts log: the mean of the last 100 training episodes, in the environment's own rewards;
the evaluation is in the last row of a run. Tables whose environments are named EnvPool/... were made with
the scripts of 8c6aa01 and before.
"""

import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm
from tyro.extras import SubcommandApp

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "benchmarks" / "figures"
sys.path += [str(ROOT), str(ROOT / "variants")]
MUJOCO = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "Humanoid-v5", "Swimmer-v5")
COLUMNS = ["environment", "script", "setting", "seed", "step", "return", "seconds", "commit", "evaluation",
           "approx_kl"]  # fmt: skip
app = SubcommandApp()


@dataclass(frozen=True)
class Run:
    """One training. The script may begin with "torchrun --nproc-per-node 2"; the setting is its flags."""

    table: str
    script: str
    env_id: str
    seed: int
    setting: str = ""

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.env_id, self.script, self.setting, self.seed

    @property
    def folder(self) -> Path:
        """Where the script leaves its own run folder; ignored by git."""
        name = re.sub(r"[^\w.-]+", "_", "_".join(map(str, self.key)))
        return ROOT / "benchmarks" / "runs" / self.table / name


def read(table: str) -> pd.DataFrame:
    """The rows of a table, in the order in which they were written."""
    path = RESULTS / f"{table}.csv"
    rows = pd.read_csv(path, dtype={"setting": str}) if path.exists() else pd.DataFrame(columns=COLUMNS)
    return rows.fillna({"setting": ""})


def rows_of(run: Run) -> pd.DataFrame:
    """The rows of a run."""
    rows = read(run.table)
    return rows[(rows[COLUMNS[:4]] == list(run.key)).all(axis=1)]


def write(table: str, rows: pd.DataFrame) -> None:
    """Appends rows, in one piece."""
    path = RESULTS / f"{table}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = rows[COLUMNS].to_csv(index=False, header=not path.exists())
    with path.open("a") as file:
        file.write(text)


def train(run: Run, points: int = 50, may_diverge: bool = False) -> float:
    """Trains to the end, from a checkpoint if there is one, and writes the rows. Returns the last return."""
    *launcher, name = run.script.split()
    command = [sys.executable, *(["-m", "torch.distributed.run", *launcher[1:]] if launcher else [])]
    command += [str(ROOT / f"{name}.py"), "--env-id", run.env_id, "--seed", str(run.seed)]
    command += shlex.split(run.setting)
    checkpoints = sorted(run.folder.glob("runs/*/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
    command += ["--resume", str(checkpoints[-1])] if checkpoints else []
    run.folder.mkdir(parents=True, exist_ok=True)
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}  # one thread each, side by side
    with (run.folder / "stdout").open("w") as out, (run.folder / "stderr").open("w") as err:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
        code = subprocess.run(command, cwd=run.folder, env=environ, **pipes).returncode
    last = "".join((run.folder / ("stderr" if code else "stdout")).read_text().strip().splitlines()[-1:])
    if code and not (may_diverge and "is not finite" in last):
        raise RuntimeError(f"{run.key} ended with {code}: {last}")
    rows = logged(run.folder, points)
    rows[COLUMNS[:4]] = run.key
    rows["commit"], rows["evaluation"] = commit(f"{name}.py"), math.nan
    if found := re.search(r"return ([^\s,]+)", last):
        rows.loc[rows.index[-1], "evaluation"] = float(found[1])
    write(run.table, rows)
    return rows["return"].iloc[-1]


def commit(script: str) -> str:
    """The last commit that changed a script, with "-dirty" where the file is another."""
    git = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    dirty = git(["git", "diff", "--quiet", "HEAD", "--", script]).returncode
    return git(["git", "log", "-1", "--format=%h", "--", script]).stdout.strip() + "-dirty" * (dirty > 0)


def logged(folder: Path, points: int) -> pd.DataFrame:
    """About so many rows of what a run logged; seconds are those of training, without pauses."""
    names = {"return_100": "return", "ep_rew_mean": "return", "approx_kl": "approx_kl"}
    values, spent = {"return": {}, "approx_kl": {}}, {}
    for path in sorted(folder.glob("runs/**/events.*"), key=lambda path: path.name):  # one for each start
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        scalars = {tag.split("/")[-1]: events.Scalars(tag) for tag in events.Tags()["scalars"]}
        for tag in set(names) & set(scalars):
            values[names[tag]] |= {event.step: event.value for event in scalars[tag]}
        kl = scalars.get("approx_kl", [])
        times = [events.FirstEventTimestamp(), *(event.wall_time for event in kl)] if kl else [0]
        spent |= {event.step: second for event, second in zip(kl, np.diff(times))}
    rows = pd.DataFrame(values, index=sorted(spent), dtype=float).rename_axis("step").reset_index()
    rows["seconds"] = np.cumsum([spent[step] for step in rows["step"]])
    if rows["return"].notna().any():  # there is none before the first episode ended
        rows = rows[rows["return"].notna()]
    elif rows.empty:  # it diverged in its first iteration
        rows = pd.DataFrame([{"step": 0, "seconds": 0.0}], columns=rows.columns)
    indices = np.unique(np.linspace(len(rows) - 1, 0, points).round().astype(int))
    return rows.iloc[indices].round({"return": 2, "seconds": 1, "approx_kl": 5}).reset_index(drop=True)


@app.command(name="run")
def run_all(
    table: str,
    seeds: tuple[int, ...],
    env_ids: tuple[str, ...] = MUJOCO,
    script: str = "ppo_continuous",
    settings: str = "",
    points: int = 50,
    jobs: int = 2,
) -> None:
    """Trains every environment with every seed and setting, as many at a time as there are jobs.

    Args:
        table: file of results, less ".csv".
        seeds: each is a run in each environment.
        env_ids: environments.
        script: ppo_continuous, ppo_discrete, ppo_atari, or one of variants/, without ".py".
        settings: flags for the script, "|" between settings: --settings="--gae-lambda 0.9 | --no-norm-obs".
        points: rows a run.
        jobs: processes at a time, each with one thread.
    """
    names = [setting.strip() for setting in settings.split("|")]
    runs = [Run(table, script, env_id, seed, x) for seed in seeds for x in names for env_id in env_ids]
    train_all(runs, jobs, points)


def train_all(runs: list[Run], jobs: int, points: int = 50, may_diverge: bool = False) -> None:
    """Trains those runs that are in no table yet, as many at a time as there are jobs; exits if one fails.

    With may_diverge, a run whose loss stops being finite has not failed: its rows end there."""
    done = {t: set(read(t)[COLUMNS[:4]].itertuples(index=False, name=None)) for t in {r.table for r in runs}}
    left = [run for run in dict.fromkeys(runs) if run.key not in done[run.table]]
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(left), unit=" runs") as bar:
        futures = {pool.submit(train, run, points, may_diverge): run for run in left}
        try:
            for future in as_completed(futures):
                bar.write(str(future.exception() or f"{futures[future].key}: {future.result():.1f}"))
                bar.update()
        except KeyboardInterrupt:  # the scripts got it too
            pool.shutdown(cancel_futures=True)
            sys.exit("interrupted: the same command goes on from the checkpoints")
    if failed := sum(future.exception() is not None for future in futures):
        sys.exit(f"{failed} of {len(left)} runs failed; the same command tries them again")


def last_rows(table: str) -> pd.DataFrame:
    """The last row of each run of a table."""
    return read(table).groupby(COLUMNS[:4], sort=False).tail(1)


@app.command
def table(name: str) -> None:
    """Prints a table of results as Markdown: every seed, mean, interquartile mean, evaluation.

    Args:
        name: of the file in benchmarks/results, less ".csv".
    """
    print("| environment | script, setting | seeds | each seed | mean | IQM [95%] | evaluation | seconds |")
    print("|---|---|---|---|---|---|---|---|")
    middle_half = partial(stats.trim_mean, proportiontocut=0.25)  # as in rliable (Agarwal et al. 2021)
    for (env_id, *setting), runs in last_rows(name).groupby(COLUMNS[:3], sort=False):
        values, seeds = runs.sort_values("seed")["return"].to_numpy(), sorted(runs["seed"])
        low = high = values.mean()
        if len(values) > 2:
            options = {"n_resamples": 10_000, "method": "percentile", "rng": 0}
            low, high = stats.bootstrap((values,), middle_half, **options).confidence_interval
        iqm = f"{middle_half(values):.0f} [{low:.0f}, {high:.0f}]"
        each, span = " ".join(f"{value:.0f}" for value in values), f"{seeds[0]}–{seeds[-1]}"
        cells = [env_id, " ".join(setting).strip(), span, each, f"**{values.mean():.0f}**", iqm]
        means = f"{runs['evaluation'].mean():.0f} | {runs['seconds'].mean():.0f}"
        print(f"| {' | '.join(cells)} | {means} |")


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
        style = dict.fromkeys(parts, ink) | {"font.size": 11}
        with plt.rc_context(style | {"axes.spines.top": False, "axes.spines.right": False}):
            fig, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
            paint(axes, [*colors, ink])
            fig.savefig(FIGURES / f"{name}_{theme}.png", dpi=160, transparent=True)
            plt.close(fig)


@app.command
def figure(name: str, against: Literal["step", "seconds"] = "step") -> None:
    """Draws the learning curves of a table, for light and dark pages, as <name>_light.png and _dark.png, a
    panel each environment. Against steps, published ones (results/published.csv) are dashed.

    Args:
        name: of the table.
        against: the horizontal axis.
    """
    rows, published = read(name), read("published")
    rows["environment"] = rows["environment"].str.replace("EnvPool/", "")
    panels = list(rows.groupby("environment", sort=False))
    columns = min(len(panels), 2 if len(panels) == 4 else 3)
    shape, scale = (math.ceil(len(panels) / columns), columns), 1e6 if against == "step" else 1

    def paint(axes: np.ndarray, colors: list[str]) -> None:
        for ax, (env_id, of_env) in zip(axes.flat, panels):
            of_env_published, highest = published[published["environment"] == env_id], of_env["return"].max()
            of_sources = of_env_published.groupby("source", sort=False) if against == "step" else ()
            for (source, points), line in zip(of_sources, ("--", ":", "-.")):
                style = {"color": colors[1], "linewidth": 1.2, "linestyle": line}
                if len(points) == 1:  # the return at the end
                    end = points["return"].item()
                    ax.axhline(end, label=f"{source}: {end:g}", **style)
                else:
                    ax.plot(points["step"] / 1e6, points["return"], label=source, **style)
                highest = max([highest, *points["return"][points["step"] <= 1.01 * of_env["step"].max()]])
            sides = list(of_env.groupby(["script", "setting"], sort=False))
            for (side, runs), color in zip(sides, colors):
                grid, values = curves([run for _, run in runs.groupby("seed")], against)
                ax.plot(grid / scale, values.T, color=color, alpha=0.25, linewidth=0.8)
                label = " ".join(side) if len(sides) > 1 else None
                mean = np.nanmean if against == "step" else np.mean  # seconds end one by one: it would jump
                ax.plot(grid / scale, mean(values, axis=0), color=color, linewidth=2.2, label=label)
            ylim = min(0, of_env["return"].min()), 1.1 * highest
            ax.set(title=env_id, xlim=(0, of_env[against].max() / scale), ylim=ylim)
            if ax.get_legend_handles_labels()[0]:
                ax.legend(frameon=False, fontsize=8)
        label = "million environment steps" if against == "step" else "seconds of training"
        axes[0, 0].figure.supxlabel(label, fontsize=11)
        axes[0, 0].figure.supylabel("return of the last 100 episodes", fontsize=11)

    draw(name, (10, max(2.7 * shape[0], 3.4)), shape, paint)


def curves(runs: list[pd.DataFrame], against: str) -> tuple[np.ndarray, np.ndarray]:
    """The returns (R, 200) of R runs on a grid (200,) of steps, or of seconds; NaN after a run's end."""
    grid = np.linspace(max(r[against].iloc[0] for r in runs), max(r[against].iloc[-1] for r in runs), 200)
    return grid, np.array([np.interp(grid, run[against], run["return"], right=np.nan) for run in runs])


@app.command
def duel(name: str, sides: tuple[str, str]) -> None:
    """Prints how often chance alone would part the means of two scripts as far (permutation test, exact), as
    Markdown, for each environment of a table.

    Args:
        name: of the table.
        sides: scripts, as they stand in the table.
    """
    print(f"| environment | {' | '.join(sides)} | means | p |\n|---|---|---|---|---|")
    for env_id, runs in last_rows(name).groupby("environment", sort=False):
        values = [runs[runs["script"] == side].sort_values("seed")["return"].to_numpy() for side in sides]
        test = stats.permutation_test(
            values, lambda x, y, axis: x.mean(axis) - y.mean(axis), n_resamples=np.inf
        )
        each = [" ".join(f"{x:.0f}" for x in of_side) for of_side in values]
        means = ", ".join(f"{of_side.mean():.0f}" for of_side in values)
        print(f"| {env_id} | {' | '.join(each)} | {means} | {test.pvalue:.2f} |")


if __name__ == "__main__":
    app.cli(description=__doc__.split("\n")[0])
