"""Published methods as settings: golden numbers, and each method in a few lines of PyTorch."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from loading import EXACT

import models
from sia_local import SIA, SiaConfig
from sia_local.cli import main
from sia_local.config import PRESETS, SamplingConfig
from sia_local.llama.gguf import GgufMetadata
from sia_local.steering.choice import Choice, Verdict

Z = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
V = np.array([0.3, -0.2, 1.1, 0.7])


def choose(config: SiaConfig) -> Verdict:
    choice = Choice(config, source=SimpleNamespace(spread=None, max_candidates=20))
    look = choice.look(Z)
    return choice.weigh(look, V if look.asks else None)


@pytest.mark.parametrize("name", ["paper", "cd"])
def test_the_papers_tilt_and_controlled_decoding(name: str) -> None:
    choice = choose(SiaConfig.preset(name, k=4))
    golden = [0.5203964221, 0.1161161370, 0.2584212153, 0.1050662256]
    np.testing.assert_allclose(choice.probabilities, golden, atol=1e-10)
    assert choice.kl == pytest.approx(0.1157653556, abs=1e-10)
    assert choice.look.entropy == pytest.approx(1.1097670015, abs=1e-10)
    colder = choose(SiaConfig.preset(name, k=4, beta=2.0, sampling=SamplingConfig(temperature=0.7)))
    golden = [0.4182193187, 0.0240194309, 0.4824431663, 0.0753180841]
    np.testing.assert_allclose(colder.probabilities, golden, atol=1e-10)


def test_only_the_paper_is_sparse() -> None:
    steered = {name: choose(SiaConfig.preset(name, k=4, threshold=1.11)).steered for name in PRESETS}
    assert steered == {"paper": False, "args": True, "rad": True, "vas": True, "cd": True}


def test_reward_augmented_decoding() -> None:
    """Values above 1 count as 1: the largest V of C, its third, takes nearly everything."""
    choice = choose(SiaConfig.preset("rad", k=4))
    assert choice.probabilities[2] == pytest.approx(0.9999251504, abs=1e-10) and len(choice.probabilities) == 4


def test_value_augmented_sampling() -> None:
    golden = [0.5027785573, 0.1121850601, 0.2496724426, 0.1015092400, 0.0298191209, 0.0040355792]
    np.testing.assert_allclose(choose(SiaConfig.preset("vas", k=4)).probabilities, golden, atol=1e-10)


@pytest.mark.parametrize(("w", "best"), [(1.5, 0), (2.0, 2)])
def test_args_takes_the_best_of_z_plus_w_v(w: float, best: int) -> None:
    """z + 1.5 V = 2.45, 0.7, 2.15, 1.05; z + 2 V = 2.6, 0.6, 2.7, 1.4."""
    choice = choose(SiaConfig.preset("args", k=4, beta=w))
    assert choice.probabilities.tolist() == [float(i == best) for i in range(4)]
    assert SiaConfig.preset("args").beta == 1.5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A Hugging Face model, its GGUF, and a head over its hidden states."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tiny import tiny_gguf

    root = tmp_path_factory.mktemp("presets")
    base = tiny_gguf("qwen3", root / "base.gguf", scale=0.4)
    with GgufMetadata(base) as meta:
        sha256 = meta.vocab_sha256()
    head = models.head()[0] / 12
    return root / "base-hf", base, models.write(root / "head.gguf", kind="head", sha256=sha256, head=head)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_published_method_in_pytorch(name: str, pair: tuple[Path, Path, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder, base, head = pair
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    weight, bias = torch.tensor(models.head()[0] / 12), models.head()[1]

    def logits(ids: list[int]) -> torch.Tensor:
        return model(torch.tensor([ids])).logits[0, -1].double()

    def value(ids: list[int], y: int) -> float:
        h = model.model(torch.tensor([[*ids, y]])).last_hidden_state[0, -1]
        return float(h @ weight) + bias

    def published(ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and probabilities of the next token, from the method's paper."""
        z, c = logits(ids).topk(10 if name in ("paper", "args") else 20)
        v = torch.tensor([value(ids, int(y)) for y in c], dtype=torch.double)
        if name == "args":
            return c, torch.nn.functional.one_hot((z + 1.5 * v).argmax(), len(c)).double()
        if name == "rad":
            return c, torch.softmax(z + 30 * v.clamp(0, 1), -1)
        if name == "vas":
            whole = logits(ids)
            whole[c] += v - v.mean()
            return c, torch.softmax(whole, -1)[c]
        p = torch.softmax(z, -1)
        if name == "paper" and -(p * p.log()).sum() < 1.0:
            return c, p
        return c, torch.softmax(z + v, -1)

    with torch.no_grad(), SIA.load(base, head, EXACT, max_candidates=20) as sia:
        prompt = sia.prompt("the king saw", raw=True)
        ids, steered, moved = list(prompt.tokens), set(), 0.0
        for step in sia.generate(prompt, SiaConfig.preset(name), max_tokens=12, seed=3, trace=True):
            wanted, p = published(ids)
            assert step.candidates is not None and step.candidates.ids.tolist() == wanted.tolist()
            np.testing.assert_allclose(step.candidates.p_steered, p.numpy(), atol=2e-3 if name == "rad" else 2e-4)
            moved = max(moved, np.abs(step.candidates.p_steered - step.candidates.p_base).max())
            steered.add(step.steered)
            ids.append(step.token)
    assert steered == ({True, False} if name == "paper" else {True}) and moved > 0.05


@pytest.mark.parametrize(("each", "total"), [(0.05, None), (None, 0.6), (0.08, 0.6)])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_never_spends_more_than_its_budget(
    base_gguf: Path, value_gguf: Path, each: float | None, total: float | None, seed: int
) -> None:
    """At every token, by KL recomputed from the candidates: total so far, and so far per token."""
    per_token, whole = (math.inf if budget is None else budget for budget in (each, total))
    free = SiaConfig(gate="dense" if seed % 2 else "entropy", beta=3.0, sampling=SamplingConfig(temperature=0.8))
    with SIA.load(base_gguf, value_gguf, n_ctx=128, n_threads=1) as sia:
        spent, lowered, steps = 0.0, 0, []
        bound = replace(free, kl_per_token=each, kl_total=total)
        made = sia.generate("hello", bound, max_tokens=40, seed=seed, trace=True)
        for step in made:
            steps.append(step)
            c = step.candidates
            assert c is not None
            plain = np.exp((c.logits - c.logits.max()) / 0.8)
            spent += float((c.p_steered * np.log(c.p_steered / (plain / plain.sum()))).sum())
            lowered += step.steered and abs(step.beta) < 3.0
            assert spent <= min(whole, per_token * (step.index + 1)) + 1e-6
        assert made.stats.kl_steering == pytest.approx(spent, abs=1e-6)
        allowed = min(whole, per_token * len(steps))
        assert lowered and spent > 0.8 * allowed
        unbound = sia.generate("hello", free, max_tokens=40, seed=seed)
        assert sum(step.kl_steering for step in unbound) > allowed


def test_the_closing_line_says_what_was_spent_of_what(base_gguf: Path, value_gguf: Path) -> None:
    few = ["-n", "20", "--seed", "7", "--threads", "1", "--ctx", "128", "-p", "hello", "--gate", "dense", "--beta", "3"]
    command = ["generate", "-m", str(base_gguf), "-v", str(value_gguf), *few]
    told = CliRunner().invoke(main, [*command, "--kl-total", "2", "--kl-per-token", "0.5", "--json"])
    budget = json.loads(told.stdout)["kl_budget"]
    assert budget["total"]["allowed"] == 2 and 1.6 < budget["total"]["spent"] <= 2
    assert budget["per_token"] == {"allowed": 0.5, "spent": pytest.approx(budget["total"]["spent"] / 20)}
    total, each = budget["total"]["spent"], budget["per_token"]["spent"]
    assert f"KL budget: {total:.3g} of 2 nats · KL budget: {each:.3g} of 0.5 nats a token" in told.stderr
    assert "KL budget" not in CliRunner().invoke(main, command).stderr
