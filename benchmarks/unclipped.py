"""ppo_continuous.py with --clip-coef inf, whose clip_fraction still counts the ratios past 1 ± 0.2."""

import math
import sys
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import ppo_continuous as ppo

ppo_loss = ppo.ppo_loss


def unclipped_loss(*args: Any, clip_coef: float, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss without a clip, and metrics as if there were one."""
    loss, _ = ppo_loss(*args, clip_coef=math.inf, **kwargs)
    return loss, ppo_loss(*args, clip_coef=clip_coef, **kwargs)[1]


ppo.ppo_loss = unclipped_loss

if __name__ == "__main__":
    ppo.main()
