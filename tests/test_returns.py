"""benchmarks/returns.py: its statistics against brute force, and that it skips what is done."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import returns


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(returns, "RESULTS", tmp_path)
    return tmp_path


def write(folder, env_id, seed, final):
    folder.mkdir(exist_ok=True)
    about = {"command": "python x.py", "evaluation": f"evaluation: return {final + 1}.0 ± 2.0, 10 episodes of {env_id}"}
    rows = ["step,seconds,return_last_100_episodes", "100,1.0,-5.00", f"200,2.0,{final:.2f}"]
    (folder / f"{env_id}__{seed}.csv").write_text("\n".join([f"# {json.dumps(about)}", *rows]) + "\n")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 10])
def test_interquartile_mean_is_that_of_the_middle_half_of_each_value_four_times(n):
    values = np.random.default_rng(n).normal(size=(3, n))
    expected = [np.sort(np.repeat(row, 4))[n : 3 * n].mean() for row in values]
    np.testing.assert_allclose(returns.interquartile_mean(values), expected)


def test_bootstrap_interval_covers_the_true_value_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [returns.bootstrap(rng.normal(3.0, 1.0, 20), resamples=400) for _ in range(200)]
    covered = np.mean([low < 3.0 < high for low, high in intervals])
    assert 0.86 < covered < 0.99  # the percentile bootstrap is somewhat too narrow at 20 values


def test_table_shows_every_seed_in_order(results, capsys):
    for seed, final in ((11, 100), (2, 300), (12, 200)):
        write(results / "setting", "Hopper-v5", seed, final)
    returns.table(("setting",))
    line = capsys.readouterr().out.splitlines()[-1]
    assert "| 2–12 | 300 100 200 | **200** |" in line and "| 201 |" in line and "2483 Tianshou" in line


def test_a_run_writes_its_csv_once_and_a_failing_one_is_named(results, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(returns.Run, "folder", property(lambda self: tmp_path / "work" / self.csv.stem))
    flags = "--total-timesteps 256 --num-steps 8 --eval-episodes 1"
    left_by_a_killed_run = tmp_path / "work" / "CartPole-v1__1" / "runs" / "CartPole-v1__ppo_discrete__1__0"
    left_by_a_killed_run.mkdir(parents=True)
    os.utime(left_by_a_killed_run, (0, 0))
    returns.run_all("s", (1,), ("CartPole-v1",), "ppo_discrete", flags, jobs=1)
    about, rows = returns.read(results / "s" / "CartPole-v1__1.csv")
    assert about["command"] == f"python ppo_discrete.py --env-id CartPole-v1 --seed 1 {flags}"
    assert about["evaluation"].startswith("evaluation: return ") and rows[-1, 0] == 256 and rows.shape[1] == 5
    assert (rows[:, 3] >= 0).all() and ((rows[:, 4] >= 0) & (rows[:, 4] <= 1)).all()  # KL and clip fraction
    monkeypatch.setattr(returns, "train", None)
    returns.run_all("s", (1,), ("CartPole-v1",), "ppo_discrete", flags, jobs=1)  # done: not trained again
    monkeypatch.undo()
    monkeypatch.setattr(returns, "RESULTS", tmp_path)
    monkeypatch.setattr(returns.Run, "folder", property(lambda self: tmp_path / "work" / self.csv.stem))
    with pytest.raises(SystemExit, match="1 of 1 runs failed"):
        returns.run_all("s", (1,), ("Pendulum-v1",), "ppo_discrete", flags, jobs=1)
    assert "use ppo_continuous.py" in capsys.readouterr().out
