"""An evaluation: exact summaries, one set of settings a folder, interruptions and failures that lose nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loading import source
from tables import GOOD, PROMPTS, TableSIA

from sia_local import SIA
from sia_local.config import SiaConfig
from sia_local.errors import ConfigError, DataError, IncompatibleError
from sia_local.evaluation.arms import Arm, Comparison
from sia_local.evaluation.cost import equal_compute, rows_of, value_rows
from sia_local.evaluation.metrics import bootstrap_mean
from sia_local.evaluation.plan import Plan
from sia_local.evaluation.remarks import remarks
from sia_local.evaluation.run import Outcome, Progress, evaluate
from sia_local.evaluation.samples import Sample, SampleFile, parse_samples
from sia_local.evaluation.summary import summarise
from sia_local.evaluation.tables import arm_cells, equal_compute_cells, equal_kl_cells, findings, markdown
from sia_local.prompts import PromptItem
from sia_local.records import Request
from sia_local.values.model import ValueModel
from sia_local.values.sources import Guides

Make = Callable[..., Path]


def plan(*arms: Arm, prompts: list[PromptItem] = PROMPTS, **over: Any) -> Plan:
    return Plan(prompts, [Arm("off"), *arms], Request("", SiaConfig(k=5), max_tokens=12), **over)


def run(folder: Path, what: Plan, report: Callable[[Progress], None] = lambda p: None) -> tuple[SampleFile, Outcome]:
    store = SampleFile(folder / "samples.jsonl", {"seed": what.request.seed})
    try:
        return store, evaluate(what, lambda source: TableSIA(), store, GOOD, report=report)
    finally:
        store.close()


def content(folder: Path) -> list[dict[str, Any]]:
    """The samples of a file without their times, in a fixed order."""
    records = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in r.items() if k != "seconds"} for r in records if "arm" in r]
    return sorted(kept, key=lambda r: (r["arm"], r["prompt_id"], r["sample"]))


SPARSE, DENSE, BON = Arm("sparse", rate=0.25, beta=2.0), Arm("dense", beta=1.0), Arm("bon", best_of=3)


def test_arms_are_filled_and_steer_as_they_say(tmp_path: Path) -> None:
    store, outcome = run(tmp_path, plan(SPARSE, DENSE, BON, samples=2))
    assert outcome == Outcome({}, outcome.thresholds, False)
    assert {arm: len(store.of_arm(arm)) for arm in ("off", SPARSE.key, "dense-b1", "bon-n3")} == {
        "off": 12, SPARSE.key: 12, "dense-b1": 12, "bon-n3": 36
    }  # fmt: skip
    entropies = [h for s in store.of_arm("off") for h in s.entropies or ()]
    assert outcome.thresholds == {0.25: pytest.approx(np.quantile(entropies, 0.75))}
    for sample in store.samples.values():
        text = sample.text.split()
        assert sample.reward == text.count("good") - text.count("bad")
        assert (sample.kl_steering > 0) == (sample.junctions > 0)
        assert sample.values_asked == 5 * sample.junctions
        assert sample.kl == pytest.approx(sample.kl_steering + sample.kl_truncation, abs=1e-6)
    rates = {arm: sum(s.junctions for s in store.of_arm(arm)) for arm in ("off", SPARSE.key, "bon-n3")}
    assert rates[SPARSE.key] > 0 == rates["off"] == rates["bon-n3"]
    assert all(s.junctions == s.steps for s in store.of_arm("dense-b1"))
    # The first words of a text come from the same uniform numbers in every arm.
    assert store.samples["off", "p1", 0].tokens == store.samples["bon-n3", "p1", 0].tokens


def test_after_an_interruption_the_same_command_gives_the_same_samples(tmp_path: Path) -> None:
    whole = plan(SPARSE, DENSE, BON)
    run(tmp_path / "whole", whole)
    seen = 0

    def interrupt(progress: Progress) -> None:
        nonlocal seen
        seen += 1
        if seen == 9:
            raise KeyboardInterrupt

    store, outcome = run(tmp_path / "cut", whole, interrupt)
    assert outcome.interrupted and len(store.samples) == 9
    file = tmp_path / "cut" / "samples.jsonl"
    file.write_bytes(file.read_bytes()[:-7])  # a crash in the middle of a line
    run(tmp_path / "cut", whole)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    before = file.read_bytes()
    run(tmp_path / "cut", whole)
    assert file.read_bytes() == before


def test_more_prompts_keep_the_threshold_of_the_texts_at_hand(tmp_path: Path) -> None:
    _, few = run(tmp_path, plan(SPARSE, prompts=PROMPTS[:2]))
    store, more = run(tmp_path, plan(SPARSE))
    assert more.thresholds == few.thresholds and len(store.of_arm(SPARSE.key)) == 6


def test_a_failing_arm_loses_no_other(tmp_path: Path) -> None:
    def load(source: str) -> Any:
        if source == "guide":
            raise IncompatibleError("these vocabularies differ")
        return TableSIA()

    what = plan(Arm("guide", rate=0.25, beta=1.0, source="guide"), DENSE)
    store = SampleFile(tmp_path / "s.jsonl", {})
    outcome = evaluate(what, load, store, GOOD)
    assert outcome.failed == {"guide-r0.25-b1": "these vocabularies differ"}
    summary = summarise(what.arms, PROMPTS, list(store.samples.values()), {}, outcome.failed)
    assert [row["key"] for row in summary["rows"]] == ["off", "dense-b1"] and summary["rows"][1]["n"] == 6
    assert summary["failed"] == outcome.failed


class Flaky:
    """A reward that fails at its call number `at`, and says how many texts it was given."""

    name = "good"

    def __init__(self, at: int):
        self.at, self.calls, self.texts = at, 0, 0

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        self.calls += 1
        if self.calls == self.at:
            raise DataError("the reward is out")
        self.texts += len(responses)
        return GOOD(prompts, responses)


def test_a_reward_that_fails_once_costs_no_text_and_changes_no_threshold(tmp_path: Path) -> None:
    budget = Arm("kl-budget", rate=0.25, beta=4.0, kl_per_token=0.03)
    what = plan(SPARSE, DENSE, budget, samples=5)
    run(tmp_path / "whole", what)
    store = SampleFile(tmp_path / "samples.jsonl", {"seed": 0})
    first, second = Flaky(at=1), Flaky(at=0)
    outcome = evaluate(what, lambda source: TableSIA(), store, first)
    store.close()
    waits = (
        "it waits for the unsteered arm, whose tokens give its threshold and which lacks texts; run the command again"
    )
    assert outcome.failed == {"off": "the reward is out", SPARSE.key: waits, budget.key: waits}
    assert not outcome.thresholds and len(store.of_arm("off")) == 16 and len(store.of_arm(DENSE.key)) == 30
    assert {s.reward for s in store.of_arm("off")} == {None}
    kept = SampleFile(tmp_path / "samples.jsonl", {"seed": 0})
    outcome = evaluate(what, lambda source: TableSIA(), kept, second, judge=None)
    kept.close()
    assert not outcome.failed and second.texts == 90 and len(kept.samples) == 120
    read = SampleFile(tmp_path / "samples.jsonl", {"seed": 0})
    read.close()
    whole = SampleFile(tmp_path / "whole" / "samples.jsonl", {"seed": 0})
    whole.close()
    assert {place: replace(s, seconds=0.0) for place, s in read.samples.items()} == {
        place: replace(s, seconds=0.0) for place, s in whole.samples.items()
    }
    assert read.fixed == whole.fixed and read.fixed[SPARSE.key]["gate"] == "entropy"


def test_texts_that_a_judge_failed_at_are_judged_later(tmp_path: Path) -> None:
    store = SampleFile(tmp_path / "s.jsonl", {})
    assert evaluate(plan(), lambda source: TableSIA(), store, GOOD, Flaky(at=1)).failed == {"off": "the reward is out"}
    made = dict(store.samples)
    assert len(made) == 6 and all(s.reward is not None and s.judge is None for s in made.values())
    never = Flaky(at=0)
    assert not evaluate(plan(), lambda source: TableSIA(), store, GOOD, never).failed
    assert never.texts == 6 and all(s.judge == s.reward for s in store.samples.values())
    store.close()


def test_settings_of_an_arm_without_texts_bind_nobody(tmp_path: Path) -> None:
    """As a folder has it in which an earlier version let an arm fail before its first text."""
    store = SampleFile(tmp_path / "samples.jsonl", {"seed": 0})
    store.fix(SPARSE.key, {"gate": "rate", "threshold": 1.0, "rate": 0.25, "beta": 2.0})
    store.close()
    store, outcome = run(tmp_path, plan(SPARSE))
    assert not outcome.failed and store.fixed[SPARSE.key]["gate"] == "entropy"
    _, outcome = run(tmp_path, replace(plan(SPARSE), arms=[SPARSE]))
    assert not outcome.failed


def test_an_unsteered_arm_that_nobody_asked_for_is_not_waited_for(tmp_path: Path) -> None:
    store, outcome = run(tmp_path, replace(plan(SPARSE), arms=[SPARSE]))
    assert not outcome.failed and store.fixed[SPARSE.key]["gate"] == "rate"


def test_samples_of_two_settings_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    SampleFile(path, {"model": {"file": "a.gguf", "bytes": 3}, "seed": 0}).close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"made with model bytes = 3, now it is 4; choose another --out"):
        SampleFile(path, {"model": {"file": "a.gguf", "bytes": 4}, "seed": 0})
    with pytest.raises(ConfigError, match="made with seed = 0, now it is None"):
        SampleFile(path, {"model": {"file": "a.gguf", "bytes": 3}})
    assert path.read_bytes() == before
    mine = Arm("profile", config=SiaConfig(k=5, gate="dense", beta=1.0))
    run(tmp_path, plan(mine))
    changed = Arm("profile", config=SiaConfig(k=5, gate="dense", beta=1.5))
    _, outcome = run(tmp_path, plan(changed))
    assert "the arm profile has texts made with other settings" in outcome.failed["profile"]


def sample(arm: str, prompt: int, number: int = 0, **over: Any) -> Sample:
    fields = {"steps": 10, "kl_truncation": 0.5, "nll": 10 * math.log(4), "reward": 0.0, "seconds": 0.5, **over}
    return Sample(arm=arm, prompt_id=f"p{prompt}", sample=number, prompt=f"prompt {prompt}", **fields)


def test_the_summary_of_known_samples() -> None:
    off = [sample("off", i, reward=r, text="a b a b", entropies=[0.5, 1.5]) for i, r in ((1, 0.0), (2, 1.0))]
    soft = [sample("dense-b1", i, reward=r, junctions=10, kl_steering=2.0) for i, r in ((1, 0.5), (2, 1.5))]
    hard = [
        sample("dense-b2", i, reward=r, junctions=10, kl_steering=6.0, flips=4, values_asked=100, judge=0.25)
        for i, r in ((1, 0.75), (2, 1.75))
    ]
    sparse = [
        sample("sparse-r0.2-b2", i, reward=r, junctions=2, kl_steering=k, steps=s, values_asked=20)
        for i, r, k, s in ((1, 0.2, 3.0, 10), (2, 1.4, 5.0, 30))
    ]
    best = [sample("bon-n2", i, n, reward=r) for i, n, r in ((1, 0, 0.0), (1, 1, 0.4), (2, 0, 1.2), (2, 1, 1.0))]
    arms = Comparison(("dense", "sparse", "bon"), (0.2,), (1, 2), best_of=(2,)).arms()
    prompts = [PromptItem("p1", "prompt 1"), PromptItem("p2", "prompt 2")]
    summary = summarise(
        [a for a in arms if not (a.best_of > 1 and a.steers) and a.key != "sparse-r0.2-b1"],
        prompts, [*off, *soft, *hard, *sparse, *best], {}, at_kl=[4.0],
    )  # fmt: skip
    rows = {row["key"]: row for row in summary["rows"]}
    assert rows["off"]["reward"]["mean"] == 0.5 and "difference" not in rows["off"]
    assert rows["off"]["perplexity"] == pytest.approx(4.0)
    assert (rows["off"]["distinct_1"], rows["off"]["distinct_2"]) == (2 / 8, 2 / 6)
    assert rows["off"]["tokens_per_second"] == 20.0
    # Both prompts gained the same, so the paired interval is a point although rewards differ by one.
    gained = {"mean": 0.75, "low": 0.75, "high": 0.75, "n": 2}
    assert rows["dense-b2"]["difference"] == gained
    assert rows["dense-b2"]["judge"]["mean"] == 0.25 and "judge" not in rows["dense-b1"]
    assert (rows["dense-b2"]["flips"], rows["dense-b2"]["values_per_token"]) == (0.4, 10.0)
    assert (rows["sparse-r0.2-b2"]["junction_rate"], rows["sparse-r0.2-b2"]["kl_per_token"]) == (0.1, 0.2)
    assert rows["sparse-r0.2-b2"]["kl"]["mean"] == 4.0 and rows["sparse-r0.2-b2"]["tokens"] == 20.0
    assert rows["bon-n2"]["reward"]["mean"] == pytest.approx(0.8)
    assert rows["bon-n2"]["kl"]["mean"] == pytest.approx(math.log(2) - 0.5) and rows["bon-n2"]["kl_sampled"] == 0.0
    # 20 candidates each, and 8 and 28 tokens read between the junctions; the best of two costs two texts.
    cost = {key: (row["base_rows"], row["value_rows"]) for key, row in rows.items()}
    assert cost["off"] == (10, 0) and cost["sparse-r0.2-b2"] == (20, 38) and cost["bon-n2"] == (20, 0)
    assert cost["dense-b2"] == (10, 100)
    # Dense at 4 nats lies halfway between (2, 1.0) and (6, 1.25); sparse was measured at 4.
    (level,) = summary["equal_kl"]
    assert level["series"]["dense"]["reward"]["mean"] == pytest.approx(1.125)
    assert level["series"]["sparse 20 %"]["reward"]["mean"] == pytest.approx(0.8)
    assert level["series"]["sparse 20 %"]["share"]["mean"] == pytest.approx(0.3 / 0.625)
    assert "best of N" not in level["series"]
    assert summary["entropy"]["quantiles"]["0.5"] == 1.0
    assert summary["warnings"] == ["Only 2 prompts: the intervals say little; use at least 30, better 200 or more."]
    # Only the sparse texts differ in length, 0.06 a token; all texts have 12 tokens in the mean.
    at_length = {key: row["reward_at_length"] for key, row in rows.items()}
    assert (at_length["off"], at_length["sparse-r0.2-b2"]) == (pytest.approx(0.62), pytest.approx(0.32))
    table = markdown(arm_cells(summary))
    assert "| dense | 2 | 1.250 ± 0.500 | 0.750 ± 0.000 |" in table and "| best of N (N = 2) | – |" in table
    assert "| 10 + 100 | 20 |" in table and "flips" not in table and "flips" in arm_cells(summary, full=True)[0]
    assert "| sparse 20 % | 0.800 (48 %" in markdown(equal_kl_cells(summary))
    said = "At the same KL of 4.0 nats a text, of dense steering's lift sparse keeps 48 % ["
    assert findings(summary)[0].startswith(said) and findings(summary)[0].endswith("] at rate 0.2.")


def test_a_sample_of_no_prompt_is_refused_with_its_line() -> None:
    record = sample("off", 1).record()
    assert parse_samples(json.dumps(record), "s.jsonl")[2][0].place == ("off", "p1", 0)
    for damage in ({"prompt_id": ["p1"]}, {"arm": None}, {"sample": "0"}):
        with pytest.raises(DataError, match=r"line 1 of 's.jsonl' is no evaluation sample .*expected two texts and"):
            parse_samples(json.dumps(record | damage), "s.jsonl")


def test_a_reader_is_told_of_short_arms_strengths_too_high_and_speeds_of_another_run() -> None:
    def texts(arm: Arm, reward: float, kl: float, judge: float = 1.0) -> list[Sample]:
        return [sample(arm.key, i, reward=reward, kl_steering=kl, judge=judge) for i in (1, 2)]

    one, two, four = (Arm("dense", beta=beta) for beta in (1.0, 2.0, 4.0))
    short = Arm("random", rate=0.2, beta=4.0)
    samples = [*texts(Arm("off"), 0.0, 0.0), *texts(one, 0.5, 1.0, 2.0), *texts(two, 0.75, 4.0)]
    samples += texts(four, 0.625, 9.0)
    samples += texts(short, 0.25, 2.0)
    prompts = [PromptItem("p1", "prompt 1"), PromptItem("p2", "prompt 2")]
    arms = [Arm("off"), one, two, four, short]
    summary = summarise(arms, prompts, samples, {}, at_kl=[1.0, 4.0], reused={short.key})
    assert remarks(summary) == [
        "Without an entry where they are compared at more nats than their strongest arm spends: random 20 % (2.0).",
        "dense: the reward turns after beta 2 (0.750; 0.625 at beta 4).",
        "dense: the judge turns after beta 1 (2.000; 1.000 at beta 2).",
        "tokens/s marked * are of an earlier run: random-r0.2-b4.",
    ]
    assert "| random 20 % | 4 |" in markdown(arm_cells(summary)) and " 20* |" in markdown(arm_cells(summary))
    assert "reward_at_length" not in summary["rows"][0]  # all of one length


def test_an_instruction_is_an_arm_whose_kl_is_what_it_changes(base_gguf: Path, tmp_path: Path) -> None:
    arm = Arm("instruction", instruction="say zz")
    what = Plan(PROMPTS[:2], [Arm("off"), arm], Request("", SiaConfig(k=5), max_tokens=8))
    store = SampleFile(tmp_path / "samples.jsonl", {})
    outcome = evaluate(what, lambda source: SIA.load(base_gguf, n_ctx=256, n_threads=1), store, GOOD)
    store.close()
    assert not outcome.failed
    with SIA.load(base_gguf, n_ctx=256, n_threads=1) as sia:
        for item in what.prompts:
            text = store.samples[arm.key, item.id, 0]
            told = sia.prompt([{"role": "system", "content": "say zz"}, {"role": "user", "content": item.text}])
            both = [
                sia.log_likelihoods(prompt, text.all_tokens, SiaConfig(gate="off")).sum()
                for prompt in (told, sia.prompt(item.text))
            ]
            assert text.kl_steering == pytest.approx(both[0] - both[1], abs=1e-3)
            assert text.nll == pytest.approx(-both[1], abs=1e-3)
    with pytest.raises(ConfigError, match="give one with --instruction"):
        Comparison(("instruction",))


def test_the_best_by_value_and_a_kl_budget(tmp_path: Path) -> None:
    by_value = Arm("bon", best_of=3, pick="value")
    budget = Arm("kl-budget", rate=0.25, beta=4.0, kl_per_token=0.03)
    what = plan(BON, by_value, Arm("sparse", rate=0.25, beta=4.0), budget)
    store, outcome = run(tmp_path, what)
    assert not outcome.failed
    texts = {arm.key: sorted(store.of_arm(arm.key), key=lambda s: s.place) for arm in what.arms}
    # The same texts, and by these tables the value of a text is its reward.
    assert [s.tokens for s in texts[by_value.key]] == [s.tokens for s in texts["bon-n3"]]
    assert all(s.value == s.reward and (s.end == 4) == (s.finish == "eog") for s in texts[by_value.key])
    assert all(s.kl_steering <= 0.03 * s.steps + 1e-9 for s in texts[budget.key])
    free = sum(s.kl_steering for s in texts["sparse-r0.25-b4"])
    assert 0 < sum(s.kl_steering for s in texts[budget.key]) < free
    summary = summarise(what.arms, PROMPTS, list(store.samples.values()), {})
    rows = {row["key"]: row for row in summary["rows"]}
    assert rows[by_value.key]["reward"] == rows["bon-n3"]["reward"]
    # Every token is read once more for its value.
    assert rows[by_value.key]["value_rows"] == rows[by_value.key]["base_rows"] == rows["bon-n3"]["base_rows"]
    worst = [replace(s, value=-(s.value or 0.0)) for s in texts[by_value.key]]
    (row,) = summarise([by_value], PROMPTS, worst, {})["rows"]
    assert row["reward"]["mean"] < rows["bon-n3"]["reward"]["mean"]
    assert "KL budget 25 % (≤ 0.03 nats/token) | ≤ 4 |" in markdown(arm_cells(summary))


@pytest.mark.parametrize("kind", ["merged", "lean", "adapter", "head", "guides"])
def test_counted_rows_are_those_that_are_decoded(make_gguf: Make, kind: str) -> None:
    base = make_gguf("base")
    source: Any = Guides(make_gguf("base", seed=3)) if kind == "guides" else make_gguf(kind, seed=1)
    config = SiaConfig(k=4, gate="random", rate=0.4, beta=1.0)
    with SIA.load(base, source, n_ctx=128, n_threads=1, max_candidates=4) as sia:
        prompt = sia.prompt("hello there", raw=True)
        steps = list(sia.generate(prompt, config, max_tokens=24, seed=1))
        made: Any = sia.value
        engine = sia.engine if kind == "head" else (made.plus if kind == "guides" else made).engine
        decoded = engine.decoded_tokens - len(prompt.tokens)
        names = {"guides": "guide"} if kind == "guides" else {kind: made.file.kind}
    text = sample("a", 1, steps=len(steps), junctions=sum(s.steered for s in steps))
    text.values_asked = sum(s.values_asked for s in steps)
    counted = value_rows(text, [names[kind]])
    # What a sample does not say: how many tokens came behind the last junction, where nothing is read any more.
    behind = len(steps) - 1 - max(i for i, s in enumerate(steps) if s.steered)
    assert 0 < text.junctions < text.steps
    if kind == "head":
        assert decoded == text.steps + counted - (not steps[-1].steered)
    else:
        # A guide has not read the last token, of which a value model has scored the candidates.
        assert decoded == counted - behind - (kind == "guides")


@pytest.mark.parametrize("kind", ["merged", "head"])
def test_a_gate_that_judges_values_has_them_decoded_where_it_stays_shut(make_gguf: Make, kind: str) -> None:
    with SIA.load(make_gguf("base"), make_gguf(kind, seed=1), n_ctx=128, n_threads=1, max_candidates=4) as sia:
        prompt, value = sia.prompt("hello there", raw=True), source(sia, ValueModel)
        for threshold in (0.0, 0.001, 1e9):
            config = SiaConfig(k=4, gate="gain", gain_threshold=threshold, beta=1.0)
            before = value.engine.decoded_tokens
            steps = list(sia.generate(prompt, config, max_tokens=12, seed=1))
            text = sample("gain", 1, steps=len(steps), junctions=sum(s.steered for s in steps))
            text.values_asked = sum(s.values_asked for s in steps)
            counted = value_rows(text, [value.file.kind], judged=True)
            read = len(prompt.tokens) if threshold == 0 else 1  # the prompt, later its last token again
            own = len(steps) if kind == "head" else 0
            assert value.engine.decoded_tokens - before - read == counted + own == 4 * 12, threshold
            arm = Arm("gain", rate=0.2, beta=1.0)
            assert rows_of(arm, [text], {"value": [value.file.kind]})["value_rows"] == counted


def test_arms_of_equal_compute_stand_side_by_side() -> None:
    def row(arm: Arm, rows: int, reward: float) -> dict[str, Any]:
        shown = {name: getattr(arm, name) for name in ("key", "series", "strength", "family", "best_of", "pick")}
        interval = {"mean": reward, "low": reward, "high": reward, "n": 9}
        cost = {"base_rows": rows / 4, "value_rows": 3 * rows / 4}
        return {**shown, "beta": arm.beta if arm.steers else None, "kl_budget": None} | {
            "reward": interval, "kl": {**interval, "mean": arm.beta}, **cost
        }  # fmt: skip

    both = [row(Arm("sparse", rate=0.2, beta=b, best_of=4), 1200, r) for b, r in ((1, 0.95), (2, 0.97))]
    rows = [row(Arm("off"), 80, 0.5), row(Arm("bon", best_of=4), 320, 0.9), row(Arm("bon", best_of=16), 1300, 0.96)]
    rows += [row(Arm("sparse", rate=0.2, beta=b), 300, r) for b, r in ((1, 0.7), (2, 0.8), (3, 0.75))]
    rows += [row(Arm("sparse", rate=0.4, beta=2), 450, 0.85), row(Arm("random", rate=0.2, beta=2), 320, 0.99), *both]
    found = equal_compute(rows)
    keys = [{way: near["key"] for way, near in level["ways"].items()} for level in found]
    assert keys == [
        {"best of N": "bon-n4", "sparse": "sparse-r0.2-b2"},
        {"best of N": "bon-n16", "sparse, best of N": "sparse-r0.2-b2-n4"},
    ]
    assert [round(level["rows"]) for level in found] == [320, 1232]
    assert equal_compute([rows[0], rows[1]]) == []
    cells = equal_compute_cells({"equal_compute": found})
    assert cells[0] == ["at equal compute", "about 320 rows/text", "about 1232 rows/text"]
    assert cells[2] == ["sparse", "0.800 ± 0.000, KL 2.0 (sparse 20 %, beta 2, 300 rows)", "–"]


def test_only_prompts_that_every_arm_finished_are_compared() -> None:
    samples = [sample("off", 1, reward=0.0), sample("off", 2, reward=5.0), sample("dense-b1", 1, reward=1.0)]
    prompts = [PromptItem(f"p{i}", f"prompt {i}") for i in (1, 2, 3)]
    summary = summarise([Arm("off"), DENSE], prompts, samples, {})
    assert [row["n"] for row in summary["rows"]] == [1, 1] and summary["rows"][0]["reward"]["mean"] == 0.0
    assert "2 of 3 prompts are missing in at least one arm and were left out." in summary["warnings"]
    # One prompt has no interval.
    assert "| dense | 1 | 1.000 | 1.000 |" in markdown(arm_cells(summary))
    nothing = summarise([Arm("off"), DENSE], prompts, samples, {}, {"off": "why", DENSE.key: "why"})
    assert nothing["prompts"] == 0 and nothing["warnings"][0].startswith("No prompt was finished by every arm")


def test_steering_away_is_a_series_of_its_own() -> None:
    away, towards = Arm("dense", beta=-1.0), Arm("dense", beta=1.0)
    texts = [sample(arm.key, i, reward=r, kl_steering=kl) for arm, r, kl in
             ((Arm("off"), 0.0, 0.0), (away, -1.0, 1.0), (towards, 1.0, 2.0)) for i in (1, 2)]  # fmt: skip
    prompts = [PromptItem("p1", "prompt 1"), PromptItem("p2", "prompt 2")]
    summary = summarise([Arm("off"), away, towards], prompts, texts, {}, at_kl=[1.0])
    (level,) = summary["equal_kl"]
    assert {name: one["reward"]["mean"] for name, one in level["series"].items()} == {
        "dense, beta < 0": -1,
        "dense": 0.5,
    }
    assert [bool(one["share"]) for one in level["series"].values()] == [True, False]  # dense towards is the reference


def test_equal_prompts_are_one_draw() -> None:
    """Rows of one prompt are no more independent than its samples."""
    prompts = [PromptItem(f"p{i}", f"prompt {i % 2}") for i in (1, 2, 3, 4)]
    texts = [sample("off", i, reward=float(i)) for i in (1, 2, 3, 4)]
    (row,) = summarise([Arm("off")], prompts, texts, {})["rows"]
    assert row["n"] == 2 and row["reward"] == asdict(bootstrap_mean([2.0, 3.0]))
    assert row["base_rows"] == row["tokens"] == 10
    (row,) = summarise([Arm("off")], prompts, texts[:3], {})["rows"]
    assert (row["n"], row["reward"]["mean"]) == (1, 2.0)
