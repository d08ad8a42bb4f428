from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import source

from sia_local.bench.arms import Arm, RivalArm, Row, Sample, Workload, seed_for_rate
from sia_local.bench.cold import ColdRow, kv_cache_mb, measure_cold
from sia_local.bench.replay import Recorder
from sia_local.bench.report import Goal, Slots, render, setting, slots
from sia_local.bench.run import Bench
from sia_local.bench.settings import BenchOptions
from sia_local.bench.shapes import SHAPES, parse_shape, vocabulary
from sia_local.bench.synthetic import ensure
from sia_local.cli import main
from sia_local.config import Setup, SiaConfig
from sia_local.errors import ConfigError
from sia_local.generation.sia import SIA
from sia_local.llama.context import Context, ContextOptions
from sia_local.llama.gguf import GgufMetadata
from sia_local.llama.model import Model
from sia_local.steering.gates import Moment, make_gate
from sia_local.values.model import ValueModel

KINDS = ("value", "lean", "adapter", "head")
ONE = Setup(n_threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return ensure("tiny", "base", folder, n_threads=1)


@pytest.fixture(scope="module")
def values(folder: Path) -> tuple[Path, ...]:
    return tuple(ensure("tiny", kind, folder, n_threads=1) for kind in KINDS)


def test_full_shapes_have_the_published_sizes() -> None:
    assert SHAPES["qwen3-0.6b"].params == 595_984_384
    assert round(SHAPES["qwen3-1.7b"].params / 1e6) == 1720


@given(st.sampled_from(["qwen3-0.6b", "qwen3-1.7b"]), st.integers(2, 6))
def test_a_fraction_has_that_share_of_the_weights(name: str, n: int) -> None:
    part = parse_shape(f"{name}/{n}")
    assert part.n_vocab == SHAPES[name].n_vocab
    assert part.params / SHAPES[name].params == pytest.approx(1 / n, rel=0.15)
    assert part.n_embd % 256 == part.n_ff % 256 == 0 and part.n_head % part.n_head_kv == 0


@pytest.mark.parametrize("spec", ["qwen3-9b", "qwen3-0.6b/", "qwen3-0.6b/1", "tiny/x", ""])
def test_an_unknown_shape_names_the_known_ones(spec: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("qwen3-0.6b")):
        parse_shape(spec)


def test_the_vocabulary_is_byte_level_with_a_merge_for_every_word() -> None:
    tokens, types, merges, special = vocabulary(151_936)
    assert len(tokens) == len(set(tokens)) == len(types) == 151_936
    assert len(merges) == 151_643 - 256
    assert special == {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}
    known = set(tokens)
    assert all(left in known and right in known for left, right in (m.split(" ") for m in merges))


def test_the_base_tokenizes_and_its_logits_are_neither_flat_nor_broken(base: Path) -> None:
    with SIA.load(base, n_ctx=64, n_threads=1) as sia:
        ids = sia.model.tokenize("<|im_start|>hello wörld", parse_special=True)
        assert b"".join(map(sia.model.piece, ids)).decode() == "hello wörld"
        sia.engine.begin(0, ids)
        (row,) = sia.engine.logits([0])
        assert np.isfinite(row).all() and 0.5 < row.std() < 5
        assert sia.prompt("hi").messages is not None


def test_value_files_hold_the_contract_and_are_written_once(base: Path, values: tuple[Path, ...]) -> None:
    for path, kind in zip(values, ("value", "value", "value-adapter", "value-head"), strict=True):
        with GgufMetadata(path) as meta, GgufMetadata(base) as base_meta:
            assert meta.get("sia.kind") == kind
            assert meta.get("sia.vocab.sha256") == base_meta.vocab_sha256()
            assert len(meta.get("sia.head.weight")) == SHAPES["tiny"].n_embd
    before = values[0].stat().st_mtime_ns
    assert ensure("tiny", "value", values[0].parent) == values[0]
    assert values[0].stat().st_mtime_ns == before
    assert not list(values[0].parent.glob("*.tmp"))


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_every_value_file_steers(base: Path, values: tuple[Path, ...], kind: int) -> None:
    with SIA.load(base, values[kind], n_ctx=128, n_threads=1) as sia:
        steps = list(sia.generate("ab cd", SiaConfig(k=4, gate="dense"), max_tokens=6, trace=True))
    scored = [s.candidates.values for s in steps if s.candidates is not None and s.steered]
    assert scored and all(np.isfinite(v).all() and v.std() > 1e-3 for v in scored)


@settings(max_examples=30)
@given(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.8, 1.0]), st.integers(1, 96))
def test_a_forced_rate_is_met_exactly(rate: float, n: int) -> None:
    seed = seed_for_rate(rate, n)
    gate = make_gate(SiaConfig(gate="random", rate=rate), seed=seed ^ 0x5EED)
    assert sum(gate.opens(Moment(i, 1.0)) for i in range(n)) == round(rate * n)


def test_a_replay_repeats_the_decodes_of_a_run(base: Path, values: tuple[Path, ...]) -> None:
    with SIA.load(base, values[1], n_ctx=128, n_threads=1) as sia:
        contexts = [sia.engine.context, source(sia, ValueModel).engine.context]
        config, recorder = SiaConfig(k=4, gate="random", rate=0.5), Recorder(contexts)
        prompt = sia.prompt("ab cd ef", raw=True)
        first = [s.token for s in sia.generate(prompt, config, max_tokens=12, seed=3)]
        with recorder.recording():
            again = [s.token for s in sia.generate(prompt, config, max_tokens=12, seed=3)]
        row = sia.engine.slots[0].row
        assert row is not None
        logits = row.copy()
        assert recorder.play() > 0 and recorder.play() > 0
        assert np.array_equal(contexts[0].logits(1)[0], logits)
        # Nothing stays wrapped, and a replay leaves the caches where a next run can begin.
        assert not {"decode", "seq_rm"} & contexts[0].__dict__.keys()
        assert first == again == [s.token for s in sia.generate(prompt, config, max_tokens=12, seed=3)]


def test_the_calls_of_every_arm_replay_from_c(base: Path, values: tuple[Path, ...], tmp_path: Path) -> None:
    import llama_cpp

    site = Path(llama_cpp.__file__).parents[1]
    compiler = shutil.which("cc")
    if compiler is None or not (site / "include/llama.h").is_file():
        pytest.skip("no C compiler, or a llama-cpp-python without headers")
    options = BenchOptions(base, values, tokens=(12,), depths=(8,), repetitions=1, setup=ONE, sequences=(1, 2))
    with Bench(replace(options, traces=tmp_path / "traces")) as bench:
        bench.build()
        rows = [row for row in bench.measure() if row.arm != "llama-cpp-python generate"]
    traces = sorted((tmp_path / "traces").iterdir())
    assert len(traces) == len(rows)
    floor, libraries = tmp_path / "floor", site / "llama_cpp/lib"
    where: list[str | Path] = ["-I", site / "include", "-L", libraries, "-lllama", f"-Wl,-rpath,{libraries}"]
    floor_c = Path(__file__).parents[1] / "examples/floor.c"
    subprocess.run([compiler, "-Wall", "-Wextra", "-Werror", floor_c, "-o", floor, *where], check=True)
    said = subprocess.run([floor, "2", *traces], check=True, capture_output=True, text=True).stdout.splitlines()
    counts = {line.split()[0]: [int(n) for n in re.findall(r"(\d+) decodes +(\d+) rows", line)[0]] for line in said}
    assert counts["unsteered-1x-tg12@d8.trace"] == [12, 12]
    assert counts["unsteered-2x-tg12@d8.trace"] == [12, 24]
    # Two junctions of four candidates: the winner's row is the next token's, so each spares a decode later.
    assert counts["sparse-head-rate0.2-k4-1x-tg12@d8.trace"] == [12, 18]
    broken = tmp_path / "broken.trace"
    broken.write_bytes(traces[0].read_bytes()[:-40])
    assert subprocess.run([floor, "1", broken], capture_output=True).returncode == 1


def test_arms_do_the_work_they_are_named_for(base: Path, values: tuple[Path, ...]) -> None:
    options = BenchOptions(base, values, tokens=(20,), depths=(8,), repetitions=2, setup=ONE, sequences=(1, 2))
    with Bench(options) as bench:
        bench.build()
        rows = bench.measure()
        assert bench.failed == []
    by = {(r.arm, r.placement, r.sequences): r for r in rows}
    assert len(by) == len(rows) == 1 + 2 + 2 * 4 + 1 + 4
    assert {len(r.samples) for r in rows} == {2}
    for (arm, placement, sequences), row in by.items():
        record = row.summary()
        assert row.samples[0].tokens == {"dense": 8}.get(arm, 20) * sequences
        assert record["junction_rate"] == {"sparse": 0.2, "dense": 1.0}.get(arm, 0.0)
        speed = record["tokens_per_second"]
        assert isinstance(speed, float) and speed > 0
        k = 4 if placement == "head" else 10
        assert row.k == (k if placement != "-" else None)
        if arm == "dense":
            # In a head's decode the winner's row is the base's own next one.
            rows_a_token = k - 1 if placement == "head" else pytest.approx(k, abs=1.2)
            assert record["value_rows_per_token"] == rows_a_token
    assert by["unsteered", "-", 1].ratios == [1.0, 1.0]
    assert by["sparse", "separate", 1].value_size == pytest.approx(1, abs=0.01)
    assert by["sparse", "lean", 1].value_size == pytest.approx(1, abs=0.1)


def test_a_q_head_decodes_no_row_for_its_values(base: Path, folder: Path) -> None:
    options = BenchOptions(base, (ensure("tiny", "qhead", folder, n_threads=1),), tokens=(8,), setup=ONE, repetitions=1)
    with Bench(options) as bench:
        bench.build()
        (row,) = [row.summary() for row in bench.measure() if row.arm == "dense"]
    assert (row["junction_rate"], row["value_rows_per_token"]) == (1.0, 0.0)


def test_reading_a_prompt_is_measured_afresh_each_time(base: Path) -> None:
    options = BenchOptions(base, prompts=(24,), tokens=(0,), repetitions=1, setup=ONE)
    with Bench(options) as bench:
        bench.build()
        arm = next(a for a in bench.arms if isinstance(a, Arm))
        before = arm.sia.engine.decoded_tokens
        arm.run(Workload("pp", 24), floor=False)
        arm.run(Workload("pp", 24), floor=False)
        assert arm.sia.engine.decoded_tokens - before >= 2 * 23
        assert [r.test for r in bench.measure()] == ["pp24", "pp24"]
        assert isinstance(bench.arms[0], RivalArm)


def test_an_arm_that_cannot_be_loaded_does_not_lose_the_others(base: Path, folder: Path) -> None:
    stranger = ensure(replace(SHAPES["tiny"], name="wide", n_embd=512), "head", folder, n_threads=1)
    options = BenchOptions(base, (stranger,), tokens=(4,), repetitions=1, setup=ONE)
    with Bench(options) as bench:
        bench.build()
        assert len(bench.failed) == 1 and "width 512" in bench.failed[0]
        assert any(isinstance(a, Arm) and a.label == "unsteered" for a in bench.arms)


@pytest.mark.parametrize(
    ("over", "says"),
    [
        ({"tokens": (0,)}, "-n"),
        ({"rates": (1.5,)}, "0 to 1"),
        ({"repetitions": 0}, "at least 1"),
        ({"sequences": (0,)}, "sequences"),
        ({"k": (10, 1)}, "candidates"),
    ],
)
def test_options_are_checked(over: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        BenchOptions(Path("x.gguf"), **over)


def test_kv_cache_formats_are_checked_before_a_file_is_read() -> None:
    with pytest.raises(ConfigError, match="unknown KV cache type 'f13'"):
        Setup(type_v="f13")
    with pytest.raises(ConfigError, match="setting 'no'"):
        Setup(flash_attention="no")


def test_fresh_processes_tell_time_and_memory(base: Path, folder: Path, values: tuple[Path, ...]) -> None:
    stranger = ensure(replace(SHAPES["tiny"], name="wide", n_embd=512), "head", folder, n_threads=1)
    files, setup = (stranger, values[2]), Setup(n_threads=1, type_k="q8_0")
    (plain, adapter, help), (failed,) = measure_cold(BenchOptions(base, files, setup=setup), 1)
    assert (
        f"start-up with {stranger.name}: a measured process ended with 2: Error: " in failed and "width 512" in failed
    )
    assert isinstance(plain, ColdRow) and plain.ours.seconds > 0 and plain.rival is not None
    assert plain.of_rival == pytest.approx(plain.ours.seconds / plain.rival.seconds)
    assert adapter.of_rival == pytest.approx(adapter.ours.seconds / plain.rival.seconds) and adapter.rival is None
    assert help.rival is None and help.ours.seconds > 0
    assert (plain.ours.peak_mb or 0.0) > 10 or not hasattr(os, "wait4")
    # 2 layers, 2 kv heads of 64; keys of 34 bytes in 32 numbers, values of two bytes each
    kv = 2 * 2 * (64 / 32 * 34 + 64 * 2) * 256 / 1e6
    assert adapter.expected_mb == pytest.approx(values[2].stat().st_size / 1e6 + kv)


@pytest.mark.parametrize("cells", [1, 256, 257])
def test_a_kv_cache_has_the_cells_llama_cpp_makes(base: Path, cells: int) -> None:
    with Model(base) as model, Context(model, ContextOptions(n_ctx=cells)) as context:
        assert kv_cache_mb(base, cells) == pytest.approx(2 * 2 * 64 * 2 * 2 * context.n_ctx / 1e6)


def test_the_rival_gets_the_same_kv_cache_and_attention() -> None:
    from sia_local.bench.rival import llama_options

    def flash(**over: Any) -> bool:
        return bool(llama_options(BenchOptions(Path("x.gguf"), setup=Setup(**over)))["flash_attn"])

    assert llama_options(BenchOptions(Path("x.gguf"), setup=Setup(type_k="q8_0")))["type_k"] == 8
    assert not flash() and flash(type_v="q8_0") and flash(n_gpu_layers=-1) and flash(flash_attention="on")
    assert not flash(n_gpu_layers=-1, flash_attention="off")


def test_the_command_prints_each_format(folder: Path, base: Path, values: tuple[Path, ...]) -> None:
    command = ["bench", "--synthetic", "tiny", "--synthetic-dir", str(folder), "--placements", "head,lean"]
    command += ["-n", "8", "-d", "4", "-r", "1", "-t", "1", "--startup", "0"]
    outputs = {}
    for form in ("md", "csv", "json", "jsonl"):
        result = CliRunner().invoke(main, [*command, "-o", form])
        assert result.exit_code == 0, result.output
        outputs[form] = result.stdout
    lines = [json.loads(line) for line in outputs["jsonl"].splitlines()]
    sheet = list(csv.DictReader(io.StringIO(outputs["csv"])))
    document = json.loads(outputs["json"])
    assert len(lines) == len(sheet) == len(document["rows"]) == 7
    assert lines[0]["arm"] == sheet[0]["arm"] == "llama-cpp-python generate"
    assert document["setting"]["threads"] == 1 and document["setting"]["llama_cpp_python"]
    assert {g["name"] for g in document["goals"] if g["measured"]} >= {"head at 20 % / unsteered"}
    table = [line for line in outputs["md"].splitlines() if line.startswith("| tg8")]
    assert len(table) == 7 and len({line.count("|") for line in table}) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "nowhere.gguf"], "no such file"),
        (["-m", "x", "--synthetic", "tiny"], "one of them"),
        (["--synthetic", "giant"], "giant"),
        (["--synthetic", "tiny", "--placements", "moon"], "moon"),
        (["--synthetic", "tiny", "-n", "four"], "commas"),
        (["--synthetic", "tiny", "-o", "pdf"], "jsonl"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", *arguments, "--synthetic-dir", str(tmp_path)])
    assert result.exit_code == 2 and says in result.stderr and "Traceback" not in result.output


def test_how_many_texts_at_once_are_fastest_and_how_few_are_enough() -> None:
    def row(arm: str, n: int, seconds: float, rate: float | None = None, test: str = "tg8") -> Row:
        placement = "-" if rate is None else "head"
        return Row(test, arm, placement, None, rate, None if rate is None else 4, n, [Sample(seconds, 60)])

    rows = [row("unsteered", 1, 2.0), row("unsteered", 2, 1.25), row("unsteered", 4, 1.2), row("unsteered", 8, 1.5)]
    rows += [row("sparse", 1, 1.0, 0.2), row("sparse", 4, 3.0, 0.2), row("gate only", 1, 1.0)]
    rows += [row("unsteered", 4, 0.1, test="pp8"), row("unsteered", 1, 0.1, test="pp8")]
    assert slots(rows) == [
        Slots("tg8", "unsteered", fastest=4, tokens_per_second=50.0, enough=2),
        Slots("tg8", "sparse, head 20 %, k 4", fastest=1, tokens_per_second=60.0, enough=1),
    ]


def test_a_goal_is_met_from_its_own_side() -> None:
    assert Goal("a", 1.0, 1.0).met and not Goal("a", 1.0, 0.9).met
    assert Goal("a", 1.2, 1.1, at_most=True).met and Goal("a", 1.0, None).met is None


def test_without_arms_the_report_still_names_what_failed(base: Path) -> None:
    with Model(base) as model:
        about = setting(BenchOptions(base, setup=ONE), model)
    assert "Not measured: x: y" in render("md", about, [], [], ["x: y"])


def _example(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(find_spec("transformers") is None, reason="needs sia-local[convert]")
def test_the_pytorch_renditions_agree_with_each_other(base: Path, values: tuple[Path, ...]) -> None:
    import torch

    official = _example("official_pytorch")
    torch.set_num_threads(1)
    model, _ = official.load(base)
    value, head = official.load(values[0])
    steering = official.Steering(k=6, beta=3.0, rate=0.5)
    published, cached = (
        official.Sia(model, value, head, cached).generate([5, 9, 300, 41], 16, steering)[0] for cached in (False, True)
    )
    assert published == cached and len(set(published)) > 3
