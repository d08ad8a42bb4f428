"""`sia-local eval`: prompts through arms, on disk, compared."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..config import ChatSettings, Setup, SiaConfig, TemplateSettings
from ..errors import ConfigError
from ..evaluation.arms import ONE_OF, USUAL_RATE, Arm, Comparison
from ..evaluation.plan import USUAL, Plan
from ..ray_workers import RayConfig, executor_for
from ..records import Request
from ..shipped import STORY
from .eval_sources import NO_GUIDES, check_spreads, fix_files, kinds_of, named_values, only
from .from_dataclass import build, list_of, options_for
from .many import SETUP, SIZED, ProgressLine, command_line, fitting, read_items, sized_context
from .options import STEERING, model_options, profile_option
from .resolve import config_from, known_from, load_from, loading_from, model_paths, profile_from, request_from

if TYPE_CHECKING:
    from ..evaluation.run import Outcome
    from ..generation.sia import SIA
    from ..rewards.load import Reward

FEW_PROMPTS = 30
# Strengths suit any value model when they count in its spreads.
EACH = replace(USUAL, config=SiaConfig(beta_unit="spread"))
BETA_UNIT = {"beta_unit": {"help": "Count betas in spreads of the value model, or raw."}}


@click.command("eval")
@model_options(SETUP, SIZED)
@click.option(
    "--prompts", type=click.Path(), help="JSON, JSONL, CSV or text.  [default: the model's own, or questions]"
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many prompts.")
@click.option("--apart", is_flag=True, help="Compare the value files, each with arms of its own; do not weigh them.")
@options_for(Comparison)
@click.option("--reward", help="vader, plain, package.module:name, …  [default: the model's own, or vader]")
@click.option("--judge", help="Second judge, a reward or .npz, or `none`.  [default: the model's own, or polarity]")
@options_for(Plan)
@options_for(EACH, without=STEERING, overrides=BETA_UNIT)
@profile_option
@options_for(RayConfig)
@click.option("--out", type=click.Path(), default="eval", show_default=True, help="Folder for samples and results.")
@click.option("--fresh", is_flag=True, help="Forget the samples that the folder holds.")
@click.option("--at-kl", callback=list_of(float), help="Compare at these KLs, nats a text.  [default: dense's]")
@click.option("--alpaca", type=click.Path(), metavar="FILE.json", help="Write an arm's texts for AlpacaEval's judge.")
@click.option("--alpaca-arm", metavar="ARM", help="Which arm that is.  [default: sparse near 20 %, beta near 1]")
@click.option("--no-report", is_flag=True, help="No report.html.")
def eval(**options: Any) -> None:
    """Compare ways of steering on many prompts.

    Every arm generates a text for every prompt: unsteered (off), steered at the least sure tokens (sparse), at all
    (dense), at random ones, and the best of N unsteered texts (bon). The tables say what each gained in reward and
    what it cost: in KL from the base, and in compute as rows a text, which are the tokens that base and value model
    decode for a text that is kept (all N texts of a best of N, and every candidate that was scored). Texts are kept as
    they are made: after Ctrl-C the same command goes on.
    """
    model = known_from(options) or STORY
    options["reward"] = options["reward"] or model.reward
    options["beta_unit"] = options["beta_unit"] or EACH.config.beta_unit
    profile = profile_from(options)
    start = profile.config_fields() if profile is not None else {}
    config = config_from({**options, "beta": 1.0}, {**start, "gate": "entropy"})
    request, setup, ray = request_from(options, config, EACH), loading_from(options, SETUP), build(RayConfig, options)
    setup = replace(setup, n_threads=ray.threads(setup.n_threads))
    arms = _arms(options, config_from({**options, "beta_unit": None}, start) if profile is not None else None)
    items = read_items(options, model_paths(options)[0])
    plan = build(Plan, dict(options), prompts=items, arms=arms, request=request)
    alpaca = _alpaca_arm(options, arms)
    reward, judge = _rewards(options, model.judge)
    check_spreads(options, arms)

    from ..evaluation.outputs import SAMPLES, write_outputs
    from ..evaluation.run import evaluate
    from ..evaluation.samples import SampleFile
    from ..evaluation.summary import summarise, write_alpaca
    from ..evaluation.tables import tables
    from ..rewards.load import reward_mark
    from .terminal import notice

    def load(source: str) -> SIA:
        ctx = sized_context(options, items, request.max_tokens)
        return load_from({**only(options, source), "n_ctx": ctx}, config, setup)

    items = fitting(options, items, request, lambda: load("none"))
    plan = replace(plan, prompts=items)
    if len(items) < FEW_PROMPTS:
        notice(f"only {len(items)} prompts: the intervals will say little; use at least {FEW_PROMPTS}, better 200")
    folder = Path(options["out"])
    store = SampleFile(folder / SAMPLES, _settings(options, request), options["fresh"])
    line = ProgressLine()
    try:
        fix_files(options, arms, store)
        for score, spec in (("reward", options["reward"]), ("judge", _judge_spec(options["judge"] or model.judge))):
            if (mark := reward_mark(spec)) and (anew := store.forget(score, mark)):
                notice(f"the {score} {spec} is another than the one that scored {anew} texts; they are scored anew")
        executor = executor_for(ray) if ray.ray is not None else None
        outcome = evaluate(plan, load, store, reward, judge, line.tell, executor)
    finally:
        line.end()
        store.close()
    if outcome.interrupted:
        notice(f"stopped; {len(store.samples)} texts are kept in {folder}, the same command goes on from there")
        raise SystemExit(130)
    if outcome.left_out:
        ctx = sized_context(options, items, request.max_tokens)
        notice(
            f"{len(outcome.left_out)} of {len(items)} prompts are left out: as the arms read them, they do not fit the "
            f"context of {ctx} tokens"
        )
    samples = plan.texts_of(store.samples.values())
    meta, kinds = _meta(options, plan, reward, judge, outcome), kinds_of(options, arms)
    summary = summarise(arms, items, samples, meta, outcome.failed, options["at_kl"] or (), kinds, store.earlier)
    if summary["rows"]:
        click.echo(tables(summary))
    written = write_outputs(folder, summary, samples, not options["no_report"])
    if alpaca is not None and alpaca.key in outcome.failed:
        notice(f"{options['alpaca']} is not written: its arm {alpaca.key} failed")
    elif alpaca is not None:
        write_alpaca(options["alpaca"], samples, alpaca, f"sia-local {alpaca.key}")
        notice(f"{options['alpaca']}: texts of the arm {alpaca.key}")
    notice(f"written: {', '.join(map(str, written))}")
    for key, sentence in outcome.failed.items():
        notice(f"Error: the arm {key} failed: {sentence}")
    if outcome.failed:
        raise SystemExit(1)


def _arms(options: dict[str, Any], profile: SiaConfig | None) -> list[Arm]:
    """The arms asked for; by default all that the models and options at hand allow."""
    guided = bool(options["guide_plus"])
    valued = bool(model_paths({**options, **NO_GUIDES})[1])
    source = "guide" if guided and not valued else "value"
    compared = build(Comparison, dict(options))
    if not options["families"]:
        usual = [f for f in Comparison().families if valued or guided or f in ("off", "bon")]
        compared = replace(compared, families=(*usual, *["guide"] * (guided and valued)))
    elif "guide" in compared.families and not guided:
        raise ConfigError("the arm 'guide' has no model; give one with --guide-plus")
    arms = compared.arms(source)
    if options["apart"]:
        arms = [one for arm in arms for one in _each(arm, named_values(options))]
    if profile is not None:
        arms.append(Arm("profile", beta=profile.beta, source=source, config=profile))
    if steered := [arm.family for arm in arms if arm.steers and arm.source != "guide" and not valued]:
        raise ConfigError(f"the arm '{steered[0]}' has no value model; give one with -v value.gguf, or --arms off,bon")
    if not valued and any(arm.by_value for arm in arms):
        raise ConfigError(
            "--best-of-by value was given without a value model; give one with -v value.gguf, or pick by reward"
        )
    return arms


def _each(arm: Arm, names: Iterable[str]) -> list[Arm]:
    """The arm under each value file, where one steers it."""
    steered = arm.source == "value" and arm.uses_values
    return [replace(arm, source=f"{ONE_OF}{name}") for name in names] if steered else [arm]


def _alpaca_arm(options: dict[str, Any], arms: list[Arm]) -> Arm | None:
    if not options["alpaca"]:
        return None
    if options["alpaca_arm"] is None:
        sparse = [arm for arm in arms if arm.family == "sparse" and arm.best_of == 1]
        return min(sparse, key=lambda a: (abs((a.rate or 0) - USUAL_RATE), abs(a.beta - 1)), default=arms[-1])
    for arm in arms:
        if arm.key == options["alpaca_arm"]:
            return arm
    raise ConfigError(f"no arm is named {options['alpaca_arm']!r}; expected one of {', '.join(a.key for a in arms)}")


def _rewards(options: dict[str, Any], usual: str) -> tuple[Reward, Reward | None]:
    from ..rewards.load import load_reward

    reward, judge = load_reward(options["reward"]), options["judge"]
    if judge == "none":
        return reward, None
    judge, asked = judge or usual, judge is not None
    if judge == "polarity" and not asked:
        from ..rewards.judge import shipped_judge

        if not shipped_judge().exists():
            click.echo(f"no second judge: {shipped_judge()} does not exist; give one with --judge", err=True)
            return reward, None
    return reward, load_reward(_judge_spec(judge))


def _judge_spec(judge: str) -> str:
    """As load_reward takes it."""
    return f"polarity:{judge}" if judge.endswith(".npz") else judge


def _settings(options: dict[str, Any], request: Request) -> dict[str, Any]:
    """What all texts of a folder share; a rerun with anything else is refused."""
    from ..evaluation.outputs import fingerprint

    by_arm = ("gate", "threshold", "rate", "beta")
    asked, usual = asdict(replace(request, prompt="")), asdict(Request(""))
    config = asked.pop("config")
    stated = ("max_tokens", "seed", "raw", "stop")
    return {
        "model": fingerprint(model_paths(options)[0]),
        # What was learnt later is left out where it is as usual, so that older folders go on.
        "config": {name: x for name, x in config.items() if name not in by_arm and (name, x) != ("steer", "all")},
        **{f.name: options[f.name] for f in fields(ChatSettings) if options.get(f.name)},
        **({"chat_template": TemplateSettings(name).template_mark} if (name := options["chat_template"]) else {}),
        **{name: value for name, value in asked.items() if name in stated or value != usual[name]},
        "kv_type": options["kv_type"],
        "kv_type_k": options["type_k"],
        "kv_type_v": options["type_v"],
        "flash_attention": options["flash_attention"] or Setup().flash_attention,
        "reward": options["reward"],
        "judge": options["judge"],
    }


def _meta(
    options: dict[str, Any], plan: Plan, reward: Reward, judge: Reward | None, outcome: Outcome
) -> dict[str, Any]:
    from .. import __version__
    from ..bench.machine import cpu_name

    base, _ = model_paths(options)
    _, values = model_paths(only(options, "value"))
    accuracy = getattr(judge, "accuracy", None)
    known = f" (right about {100 * accuracy:.0f} % of held-out sentences)" if accuracy is not None else ""
    return {
        "title": f"{base.name}, steered",
        "model": base.name,
        "value": " + ".join(Path(str(value)).name for value in values) or None,
        "guide": " − ".join(Path(g).name for g in (options["guide_plus"], options["guide_minus"]) if g) or None,
        "reward_name": reward.name,
        "judge_name": f"{judge.name}{known}" if judge is not None else None,
        "beta_unit": options["beta_unit"],
        "max_tokens": plan.request.max_tokens,
        "samples": plan.samples,
        "seed": plan.request.seed,
        "thresholds": {f"{rate:g}": nats for rate, nats in outcome.thresholds.items()},
        "machine": cpu_name(),
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "command": command_line(click.get_current_context()),
    }
