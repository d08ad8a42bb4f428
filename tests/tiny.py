"""Tiny random models of the three architectures with a real byte-level BPE tokenizer, made in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

ARCHS = ("llama", "qwen2", "qwen3")
WORDS = (
    "the a of and to in he she was happy sad little big dog cat bird ran walked saw said king queen forest river "
    "once upon time there day night sun moon tree house good bad kind cruel loved hated found lost old young"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tiny_tokenizer(folder: str | Path, n_vocab: int = 384, chat: bool = True) -> Path:
    """A byte-level BPE tokenizer (qwen2's splitting) of at most `n_vocab` tokens, saved to `folder`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng = np.random.default_rng(7)
    lines = [" ".join(rng.choice(WORDS.split(), 12)) + ".\n" for _ in range(200)]
    tokenizer.train_from_iterator(lines, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return Path(folder)


def retokenized(source: Path, folder: Path, style: str, words: str = WORDS) -> Path:
    """A copy of the model in `source` with another tokenizer: llama.cpp's name of a byte-level one, or SentencePiece
    as tokenizer.json alone (`spm-json`) or beside a tokenizer.model (`spm-model`)."""
    import shutil

    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(source / name, folder / name)
    if style == "qwen2" and words == WORDS:
        tiny_tokenizer(folder)
        return folder
    rng = np.random.default_rng(7)
    lines = [" ".join(rng.choice(words.split(), 12)) + ".\n" for _ in range(200)]
    specials = ["<s>", "<|im_start|>", "<|im_end|>"]
    if style.startswith("spm"):
        tokenizer, pieces = _sentencepiece(lines, specials)
        if style == "spm-model":
            (folder / "tokenizer.model").write_bytes(_sentencepiece_file(pieces))
    else:
        regex = _QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|" if style == "llama-bpe" else r"|\p{N}|")
        split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
        levels = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style in ("gpt-2", "smollm"))]
        before = {"gpt-2": [], "smollm": [pre_tokenizers.Digits(individual_digits=True)]}.get(style, [split])
        tokenizer = Tokenizer(models.BPE(ignore_merges=style == "llama-bpe"))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, *levels])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        options: dict[str, Any] = {"special_tokens": specials, "initial_alphabet": alphabet, "show_progress": False}
        tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=384, **options))
    if style == "llama-bpe" or style.startswith("spm"):
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in specials])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)
    return folder


def _sentencepiece(lines: list[str], specials: list[str]) -> tuple[Any, list[tuple[str, int]]]:
    """A tokenizer as Llama 2's: byte fallback, a space in front, merges in the order of the ids; and its pieces."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=110, show_progress=False))
    learnt = sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)
    pieces = [("<unk>", 2), *((name, 3) for name in specials), *((f"<0x{i:02X}>", 6) for i in range(256))]
    pieces += [(piece, 1) for piece in learnt]
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in learnt
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    model = models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer, pieces


def _sentencepiece_file(pieces: list[tuple[str, int]]) -> bytes:
    """sentencepiece_model.proto: repeated pieces (1) of piece (1), score (2), type (3); trainer (2) of model_type (3)
    and byte_fallback (35); normalizer (3)."""
    import struct

    out = b""
    for i, (piece, kind) in enumerate(pieces):
        name = piece.encode()
        body = bytes([0x0A, len(name)]) + name + b"\x15" + struct.pack("<f", -0.5 * i) + bytes([0x18, kind])
        out += bytes([0x0A, len(body)]) + body
    return out + bytes([0x12, 5, 0x18, 2, 0x98, 2, 1]) + bytes([0x1A, 2, 0x18, 1])


def tiny_hf(arch: str, folder: str | Path, **over: Any) -> Path:
    """A random causal LM (hidden 64, 2 blocks, 4 heads sharing 2, head_dim 16) with its tokenizer, in `folder`.

    `over` overrides the configuration; `seed`, `chat` and `scale` (of the weights) are taken out first. Biases
    and norms are random too, so that a converter that forgets them is caught.
    """
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    transformers.logging.disable_progress_bar()
    seed, chat, scale = over.pop("seed", 0), over.pop("chat", True), over.pop("scale", 0.08)
    root = tiny_tokenizer(folder, chat=chat)
    shape = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    if arch == "qwen3":
        shape["head_dim"] = 32
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[arch](**{**shape, **over})
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("norm.weight"):
                weight.copy_(1.0 + 0.1 * noise)
            else:
                weight.copy_((1.0 if "embed" in name else scale) * noise)
    model.save_pretrained(root)
    return root


def tiny_reward(folder: str | Path, seed: int = 3) -> Path:
    """A random Qwen3 sequence classifier with one output, its tokenizer and chat template, in `folder`."""
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    root = tiny_tokenizer(folder)
    shape: dict[str, Any] = {"num_labels": 1}
    config = transformers.Qwen3Config(
        **shape,
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
        model.score.weight.normal_()
    model.save_pretrained(root)
    return root


def tiny_trajectories(path: str | Path, folder: Path, prompts: int = 6, samples: int = 4, length: int = 12) -> Path:
    """Scored trajectories of random tokens as JSONL; the reward is the share of even ids, so it can be learnt."""
    import json

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(5)
    lines = []
    for p in range(prompts):
        prompt = f"the {WORDS.split()[p]} king"
        chat = [{"role": "user", "content": prompt}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for j in range(samples):
            tokens = rng.integers(3, len(tokenizer), length + j).tolist()
            entry = {
                "id": f"{p}-{j}",
                "prompt_id": p,
                "prompt": prompt,
                "rendered": rendered,
                "tokens": tokens,
                "response": tokenizer.decode(tokens),
                "finish": "stop" if j % 2 else "length",
                "reward": float(np.mean([t % 2 == 0 for t in tokens])),
            }
            lines.append(json.dumps(entry))
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Path(path)


def tiny_checkpoint(
    folder: str | Path,
    backbone: Path,
    tune: str = "lora",
    layers: int | None = None,
    n_hidden: int = 0,
    targets: tuple[str, ...] = ("attention",),
) -> Any:
    """A value model with random changes and head over `backbone`, as `train` would leave it in `folder`."""
    import torch
    from sia_convert.formats.checkpoint import ValueCheckpoint, ValueMeta
    from sia_convert.train.config import LoraSettings
    from sia_convert.train.model import build, save_changes

    torch.manual_seed(11)
    model = build(backbone, tune, LoraSettings(r=4, alpha=8, targets=targets), layers, n_hidden)
    with torch.no_grad():
        for name, weight in model.trainable().items():
            weight.add_(torch.randn(weight.shape) * (0.1 if "lora" in name or name.startswith("head") else 0.02))
    save_changes(model, {name: w.detach() for name, w in model.trainable().items()}, Path(folder), tune)
    meta = ValueMeta(
        backbone=str(backbone),
        placement="head" if tune == "none" else "separate",
        tune=tune,
        layers=layers,
        reward_mean=0.25,
        reward_std=1.5,
        prompt_template=CHAT_TEMPLATE,
    )
    ValueCheckpoint(Path(folder), meta, model.head.to_head()).save()
    return ValueCheckpoint.open(folder)


def prove(checkpoint: Any, path: Path, base: Path, data: Path, **junctions: Any) -> Any:
    """`verify`'s row of one GGUF, at junctions of any entropy."""
    from sia_convert.proof.junctions import JunctionConfig
    from sia_convert.proof.verify import verify
    from sia_convert.proof.walk import walk
    from sia_convert.settings import Machine

    config = JunctionConfig(**{"threshold": 0.0, "per_trajectory": 4, "n_ctx": 256, **junctions})
    machine = Machine(threads=1)
    return verify(walk(checkpoint, base, [data], config, machine), [path], base, machine=machine)[0]


def tiny_gguf(arch: str, path: str | Path, dtype: str = "f32", **over: Any) -> Path:
    """The GGUF of `tiny_hf(arch)`; the Hugging Face folder stays beside it as `<stem>-hf`."""
    from sia_convert.formats.export import export_base

    target = Path(path)
    folder = tiny_hf(arch, target.with_name(f"{target.stem}-hf"), **over)
    return export_base(folder, target, dtype)


if __name__ == "__main__":
    # python tests/tiny.py FOLDER: the three models that examples/tiny.toml names.
    import sys

    root = Path(sys.argv[1])
    tiny_hf("qwen3", root / "base")
    tiny_hf("qwen3", root / "value", hidden_size=32, seed=4)
    tiny_reward(root / "reward")
    print(f"wrote base, value and reward to {root}")
