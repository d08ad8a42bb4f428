"""The demo base model from raw data: corpus, byte-level BPE tokenizer, a small Llama trained from scratch.

One call does everything and continues where an interrupted one stopped: `pretrain(PretrainConfig(...))`.
The schedule (warm-up, constant, linear decay to zero) follows the larger of time spent and tokens seen over
their limits, so a run ends on time whatever else the machine does.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sia_local.errors import DataError
from sia_local.files import atomic_write, put, scratch

from .corpus import END_OF_TEXT, IM_END, IM_START, Sources, epoch, load_sources
from .recipe import PretrainConfig, begin

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epoch: int = 0
    row: int = 0
    classics: float = 0.0


def train_tokenizer(texts: Iterator[str] | list[str], vocab_size: int) -> Any:
    """Byte-level BPE with the GPT-2 pre-tokenizer (llama.cpp: `tokenizer.ggml.pre = gpt-2`) and ChatML marks.

    Returns a transformers PreTrainedTokenizerFast; ids 0 to 2 are the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=IM_END,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[IM_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1_000_000,
    )


def pack(documents: list[list[int]], width: int, seed: int, pad: int = -1) -> Any:
    """Documents into rows of `width` ids (int16 array [n_rows, width]), `pad` filling what is left.

    Best fit by decreasing length, so nearly every document is whole and the first of its row starts at
    position 0; longer ones are cut into pieces. Rows come in random order.
    """
    import bisect

    import numpy as np

    pieces = [d[i : i + width] for d in documents for i in range(0, len(d), width)]
    pieces.sort(key=len, reverse=True)
    rows: list[list[int]] = []
    space: list[tuple[int, int]] = []
    for piece in pieces:
        at = bisect.bisect_left(space, (len(piece), -1))
        if at < len(space):
            left, index = space.pop(at)
            rows[index].extend(piece)
        else:
            left, index = width, len(rows)
            rows.append(list(piece))
        bisect.insort(space, (left - len(piece), index))
    random.Random(seed).shuffle(rows)
    packed = np.full((len(rows), width), pad, dtype=np.int16)
    for i, row in enumerate(rows):
        packed[i, : len(row)] = row
    return packed


def encode_rows(tokenizer: Any, documents: list[str], width: int, seed: int) -> Any:
    """Documents, each closed by the end-of-text mark, as packed rows."""
    ids = tokenizer(documents, add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    return pack([[*d, end] for d in ids], width, seed)


def learning_rate(config: PretrainConfig, progress: Progress) -> float:
    """Warm-up by tokens, then constant, then linear to zero over the last `decay` of the run."""
    done = finished(config, progress)
    warm = min(1.0, (progress.tokens + 1) / max(1, config.warmup_tokens))
    return config.lr * warm * min(1.0, max(0.0, (1.0 - done) / max(1e-9, config.decay)))


def finished(config: PretrainConfig, progress: Progress) -> float:
    """Share of the run that is done, 0 to 1."""
    return min(1.0, max(progress.seconds / (60 * config.minutes), progress.tokens / config.tokens))


def split_sources(sources: Sources, held_out: int, seed: int) -> tuple[Sources, list[Any]]:
    """Training sources and the stories and fables kept for measuring; the same split for the same seed."""
    items = [*sources.stories, *sources.fables]
    if held_out >= len(items):
        raise DataError(f"{held_out} held-out texts of {len(items)}: hold out fewer")
    kept = random.Random(seed).sample(items, held_out)
    chosen = {id(s) for s in kept}
    rest = Sources(
        [s for s in sources.stories if id(s) not in chosen],
        [s for s in sources.fables if id(s) not in chosen],
        sources.classics,
    )
    return rest, kept


def build_model(config: PretrainConfig, tokenizer: Any) -> Any:
    """A Llama with tied embeddings and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    end, stop = tokenizer.pad_token_id, tokenizer.eos_token_id
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.layers,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.hidden_size // config.heads,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=end,
    )
    model = LlamaForCausalLM(shape)
    model.generation_config.eos_token_id = [stop, end]
    model.generation_config.pad_token_id = end
    return model


def save_hf(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a Hugging Face folder aside and moves it into place."""
    with scratch(folder) as room:
        model.save_pretrained(room / "new")
        tokenizer.save_pretrained(room / "new")
        if folder.exists():
            os.replace(folder, room / "old")
        put(room / "new", folder)


def _append(log: Path, record: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(record) + "\n")


def _tokenizer(config: PretrainConfig, sources: Sources) -> Any:
    from transformers import PreTrainedTokenizerFast

    folder = config.work / "tokenizer"
    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = train_tokenizer(epoch(sources, config.classics, config.seed), config.vocab_size)
    if len(tokenizer) != config.vocab_size:
        raise DataError(f"the corpus gives {len(tokenizer)} tokens, {config.vocab_size} were wanted: lower vocab_size")
    with scratch(folder) as room:
        tokenizer.save_pretrained(room / "new")
        put(room / "new", folder)
    return tokenizer


def pretrain(config: PretrainConfig, anew: bool = False) -> Progress:
    """Runs (or continues) training and writes the Hugging Face folder; returns where it ended.

    Raises DataError for missing data, and ConfigError when `config.work` holds a run with other settings or data, which
    `anew` removes. Checkpoints in `config.work` are replaced atomically.
    """
    import torch

    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    config.check()
    begin(config, anew)
    sources, kept = split_sources(load_sources(config.data, config.story_limit), config.held_out, config.seed)
    tokenizer = _tokenizer(config, sources)
    width = config.context + 1
    held = encode_rows(tokenizer, list(epoch(Sources(kept), 0.0, config.seed)), width, config.seed)
    model = build_model(config, tokenizer)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.lr, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    progress = Progress(classics=config.classics)
    state_file, log = config.work / "checkpoint.pt", config.work / "log.jsonl"
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])

    def losses(ids: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.bf16):
            inputs = ids[:, :-1].clamp(min=0)
            hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
            logits = hidden @ model.lm_head.weight.T
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-1)

    compute = torch.compile(losses) if config.compiled and shutil.which("g++") else losses

    def measure() -> float:
        total, count = 0.0, 0
        with torch.no_grad():
            for i in range(0, len(held), config.batch):
                ids = torch.from_numpy(held[i : i + config.batch]).long()
                tokens = int((ids[:, 1:] >= 0).sum())
                total, count = total + float(losses(ids)) * tokens, count + tokens
        return total / count

    def save() -> None:
        with atomic_write(state_file, "wb") as handle:
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": asdict(progress)},
                handle,
            )

    begun = saved = marked = time.monotonic()
    marked_tokens = progress.tokens
    running = float("nan")
    rows: Any = None
    while finished(config, progress) < 1 and (config.max_steps is None or progress.step < config.max_steps):
        if rows is None:
            # A late epoch is nearly all stories: what the model shall write is learned last.
            texts = list(epoch(sources, progress.classics, config.seed + 1 + progress.epoch))
            rows = encode_rows(tokenizer, texts, width, config.seed + progress.epoch)
        batch = torch.from_numpy(rows[progress.row : progress.row + config.batch]).long()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, progress)
        loss = compute(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        value = loss.item()
        if not math.isfinite(value):
            raise DataError(f"the loss became {value} at step {progress.step}: lower the learning rate")
        running = value if math.isnan(running) else 0.98 * running + 0.02 * value
        progress.step += 1
        progress.tokens += int((batch[:, 1:] >= 0).sum())
        progress.row += config.batch
        now = time.monotonic()
        progress.seconds += now - begun
        begun = now
        if progress.row + config.batch > len(rows):
            late = finished(config, progress) > 1 - config.decay - 0.1
            progress.epoch, progress.row, rows = progress.epoch + 1, 0, None
            progress.classics = config.late_classics if late else config.classics
        if progress.step % config.eval_steps == 0 or progress.step == 20:
            rate = (progress.tokens - marked_tokens) / max(1e-9, now - marked)
            _append(log, {
                "step": progress.step, "tokens": progress.tokens, "minutes": round(progress.seconds / 60, 2),
                "epoch": progress.epoch, "lr": learning_rate(config, progress), "train_loss": round(running, 4),
                "held_out_loss": round(measure(), 4), "tokens_per_s": round(rate, 1),
            })  # fmt: skip
            marked, marked_tokens = time.monotonic(), progress.tokens
        if now - saved > 60 * config.save_minutes:
            save()
            saved = time.monotonic()
    save()
    save_hf(model, tokenizer, config.out)
    _append(log, {**asdict(progress), "held_out_loss": round(measure(), 4), "finished": True})
    return progress
