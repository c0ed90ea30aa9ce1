"""docs/index.html: its formulas beside the script's and torch's gradients, its controls in a browser."""

import json
import re
import subprocess
from functools import partial
from shutil import which

import pytest
import quickjs
import torch
from conftest import ROOT
from torch.distributions import Bernoulli, kl_divergence
from torch.func import grad_and_value, vmap

import ppo_continuous as ppo

PAGE, JS, INF = (ROOT / "docs/index.html").read_text("utf-8"), quickjs.Context(), float("inf")
torch.manual_seed(0)
JS.eval(re.search('<script id="math">(.*?)</script>', PAGE, re.S)[1])
near = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9, check_dtype=False)  # JSON has no 0.0
PROBE = """<script>
const widths = [innerWidth, document.documentElement.scrollWidth];
const below = [...document.querySelectorAll("td:last-child")].map(cell => cell.textContent).join(" ");
const seen = x => [...x.closest("section").querySelectorAll("svg")].map(svg => svg.innerHTML).join();
const idle = [...document.querySelectorAll("input:not(:checked), button")].filter(x => {
  const before = seen(x);
  x.type === "range" ? x.stepDown(x.id === "r" ? 60 : 2) : x.click();
  x.dispatchEvent(new Event("input", {bubbles: true}));
  return seen(x) === before;
});
const out = `<pre>${JSON.stringify([widths, errors, idle.map(x => x.id), below])}</pre>`;
parent.document.body.insertAdjacentHTML("beforeend", out);
</script>"""


def js(function, *args):
    return json.loads(JS.eval(f"JSON.stringify(({function})(...{json.dumps(args)}))"))


def objective(policy, old_policy, actions, advantages, clip_coef, norm_adv=False):
    zero, args = torch.zeros_like(advantages), ppo.Args(norm_adv=norm_adv, vf_coef=0)
    batch = ppo.Batch(zero, actions, old_policy.log_prob(actions), zero, advantages, zero)
    return -ppo.ppo_loss(policy, zero, batch, clip_coef, args)[0]


@pytest.mark.parametrize("coef", [0.05, 0.2, 0.5, 3.0])
def test_one_sample(coef):
    r, advantages, one = 2 * torch.rand(200).double(), torch.randn(200).double(), torch.ones(1).double()
    old, policy = Bernoulli(0.4 * one), partial(Bernoulli, validate_args=False)  # vmap cannot
    curves = {
        "surrogate": lambda r, a: objective(policy(0.4 * r), old, one, a[None], coef),
        "penalised": lambda r, a: r * a - coef * (r - 1 - r.log()),
    }
    for name, curve in curves.items():
        each = f"(r, a) => [{name}Slope, {name}].map(f => r.map((x, i) => f(x, a[i], {coef})))"
        expected = [y.tolist() for y in vmap(grad_and_value(curve))(r, advantages)]
        near(js(each, r.tolist(), advantages.tolist()), expected)


def test_gae():
    rewards, values, next_values = columns = torch.randn(3, 200, 1).double()
    terminated, truncated = ends = torch.rand(2, 200, 1) < 0.3  # sometimes both
    rollout = ppo.Rollout(None, None, None, values, rewards, terminated, truncated, None, None)
    advantages = ppo.compute_gae(rollout, next_values, ppo.Args(gamma=0.9, gae_lambda=0.8))
    gae = js("computeGae", *(x.flatten().tolist() for x in (*columns, *ends)), 0.9, 0.8)
    near(gae["advantages"], advantages[:, 0].tolist())
    near(gae["returns"], (advantages + values)[:, 0].tolist())


@pytest.mark.parametrize("seed", range(1, 11))
def test_batch_and_trpo_step(seed):
    batch, start = js("seed => [drawBatch(START, generator(seed)), START]", seed)
    actions, rewards = torch.tensor([batch["actions"], batch["rewards"]], dtype=torch.double)
    old, logit = torch.tensor([start, start + seed / 4 - 1], dtype=torch.double)

    def curve(logit, clip_coef, beta):
        policies = Bernoulli(logits=logit), Bernoulli(logits=old)
        surrogate = objective(*policies, actions, rewards, clip_coef, norm_adv=True)
        return surrogate - beta * kl_divergence(*policies[::-1])

    for coefs in ((INF, 0), (0.2, 0), (INF, 2)):
        expected = [y.item() for y in grad_and_value(curve)(logit, *coefs)]
        args = logit.item(), start, batch, *coefs
        near([js("batchGradient", *args), js("batchObjective", *args)], expected)
    step, p = js("trpoStep", start, batch, 0.01), old.sigmoid()
    near(step["direction"], (grad_and_value(curve)(old, INF, 0)[0] / (p * (1 - p))).item())
    assert step["gain"] > 0 and step["kl"] <= 0.01


@pytest.mark.skipif(not which("chromium"), reason="needs chromium")
def test_controls(tmp_path):
    head = "<head><script>const errors = []; onerror = message => errors.push(message)</script>"
    (tmp_path / "page.html").write_text(PAGE.replace("<head>", head) + PROBE, "utf-8")
    frame = '<iframe src="page.html" frameborder="0" width="{}"></iframe>'  # windows are not as narrow
    (tmp_path / "both.html").write_text(frame.format(360) + frame.format(1280))
    flags = "--headless --no-sandbox --disable-gpu --hide-scrollbars --allow-file-access-from-files"
    command = ["chromium", *flags.split(), "--user-data-dir=profile", "--dump-dom", "both.html"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = sorted(map(json.loads, re.findall("<pre>(.*?)</pre>", dom)))
    numbers = "74 74 74 74 84 7 5 18"  # as the text says
    assert found == [[[width, width], [], [], numbers] for width in (360, 1280)]
