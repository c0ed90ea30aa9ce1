"""What is too slow for the suite: kills, full disks and long runs, each tried on the real scripts.

    python tests/faults.py kill --times 50
    python tests/faults.py disk
    python tests/faults.py long --steps 20000000
    python -m pytest tests/test_flags.py --hypothesis-profile long

Each prints what it found and exits with 1 at the first promise of the README that does not hold. The last tries 1,000
combinations of flags on each script, where the suite tries 24.
"""

import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm
from tyro.extras import SubcommandApp

ROOT = Path(__file__).resolve().parent.parent
app = SubcommandApp()

# Runs a script whose Logger notes the last step, as TensorBoard keeps its events in memory for up to two minutes.
NOTING = """
import os, sys
sys.path.insert(0, {root!r})
import {script} as ppo
log = ppo.Logger.log
def noting(self, metrics, episode_returns, global_step):
    log(self, metrics, episode_returns, global_step)
    os.pwrite(noted, str(global_step).encode().ljust(20), 0)
ppo.Logger.log = noting
noted = os.open("noted", os.O_CREAT | os.O_WRONLY)
sys.argv = ["{script}.py", *sys.argv[1:]]
ppo.main()
"""


def start(folder: Path, script: str, *flags: object, limit: int | None = None, quiet: bool = False) -> subprocess.Popen:
    """The script in a process of its own in this folder; no file of it may grow past limit bytes, as on a full disk.
    What it prints goes into pipes, or nowhere if quiet: a pipe that nobody reads fills up."""

    def before() -> None:
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-c", NOTING.format(root=str(ROOT), script=script), *map(str, flags)]
    output = subprocess.DEVNULL if quiet else subprocess.PIPE
    pipes = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
    return subprocess.Popen(command, cwd=folder, text=True, preexec_fn=before, **pipes)


def must(holds: bool, what: str) -> None:
    if not holds:
        sys.exit(f"broken: {what}")


@app.command
def kill(times: int = 50, script: str = "ppo_discrete", seed: int = 0) -> None:
    """kill -9 at random moments: a checkpoint must load, be recent, and be one that training goes on from.

    Args:
        times: runs to kill.
        script: ppo_continuous or ppo_discrete.
        seed: of the moments.
    """
    rng, found, lost = random.Random(seed), 0, []
    batch = ("--num-envs", 4, "--num-steps", 64, "--eval-episodes", 1)
    for _ in tqdm(range(times)):
        with tempfile.TemporaryDirectory() as name:
            folder, every = Path(name), rng.choice((1, 3, 10))
            process = start(folder, script, *batch, "--total-timesteps", 10**9, "--checkpoint-every", every)
            while not (folder / "noted").exists() or not (folder / "noted").read_text().strip():
                must(process.poll() is None, "the run ended by itself")
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 2))
            process.kill()
            process.communicate()
            step = int((folder / "noted").read_text())
            paths = list(folder.glob("runs/*/checkpoint.pt"))
            must(bool(paths) or step < (every + 1) * 256, f"no checkpoint at step {step} with one every {every}")
            if not paths:
                continue
            saved = torch.load(paths[0], weights_only=True)["global_step"]
            must(step - saved <= every * 256, f"killed after step {step}, saved {saved}, every {every} iterations")
            lost.append((step - saved) // 256 / every)
            resumed = start(folder, script, "--resume", paths[0], "--total-timesteps", saved + 512)
            _, err = resumed.communicate(timeout=100)
            must(resumed.returncode == 0, f"could not resume: {err}")
            must(torch.load(paths[0], weights_only=True)["global_step"] == saved + 512, "the resumed run went nowhere")
            found += 1
    print(f"killed {times} times; {found} had a checkpoint, every one of them was gone on from; the others were killed")
    print(f"before the first was due. Lost: {sum(lost) / len(lost):.2f} of the iterations between two, on average")


@app.command
def disk(script: str = "ppo_discrete") -> None:
    """A disk that is full when a checkpoint is written: one clear line, and the checkpoint before it stays whole.

    Args:
        script: ppo_continuous or ppo_discrete.
    """
    flags = ("--num-envs", 4, "--num-steps", 64, "--total-timesteps", 2048, "--eval-episodes", 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(folder, script, *flags)
        process.communicate()
        (path,) = folder.glob("runs/*/checkpoint.pt")
        before = path.read_bytes()
        full = start(folder, script, "--resume", path, "--total-timesteps", 4096, limit=len(before) // 2)
        _, err = full.communicate(timeout=100)
        last = err.strip().splitlines()[-1]
        print(f"exit status {full.returncode}: {last}")
        must(full.returncode == 1 and last.startswith("error: ") and "Traceback" not in err, f"not one line: {err}")
        must(path.read_bytes() == before, "the checkpoint before is no longer what it was")


@app.command
def long(steps: int = 20_000_000) -> None:
    """CartPole for very long: memory and seconds per iteration must not grow.

    Args:
        steps: environment steps.
    """
    with tempfile.TemporaryDirectory() as name:
        flags = ("--total-timesteps", steps, "--num-envs", 64, "--compile", "--eval-episodes", 1)
        process, rows, begin = start(Path(name), "ppo_discrete", *flags, quiet=True), [], time.monotonic()
        while process.poll() is None:
            time.sleep(10)
            noted, status = Path(name, "noted"), Path(f"/proc/{process.pid}/status")
            if noted.exists() and noted.read_text().strip() and status.exists():
                resident = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmRSS")]
                rows.append(
                    (time.monotonic() - begin, int(noted.read_text()), int(resident[0]) // 1024 if resident else 0)
                )
                print("{:.0f} s, step {}, {} MiB".format(*rows[-1]), flush=True)
    must(process.returncode == 0, f"the run ended with {process.returncode}")
    quarter = len(rows) // 4
    must(quarter > 1, f"too short: {rows}")
    speeds = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in ((rows[1], rows[quarter]), (rows[-quarter], rows[-2]))]
    memory = rows[quarter][2], rows[-2][2]
    print(f"steps/s in the first quarter {speeds[0]:.0f}, in the last {speeds[1]:.0f}; MiB {memory[0]}, {memory[1]}")
    must(memory[1] < memory[0] * 1.05 + 5, "memory grew")
    must(speeds[1] > 0.8 * speeds[0], "iterations grew slower")


if __name__ == "__main__":
    app.cli(description=__doc__.split("\n")[0])
