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
    config = transformers.Qwen3Config(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_labels=1,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
        model.score.weight.normal_()
    model.save_pretrained(root)
    return root


def tiny_gguf(arch: str, path: str | Path, dtype: str = "f32", **over: Any) -> Path:
    """The GGUF of `tiny_hf(arch)`; the Hugging Face folder stays beside it as `<stem>-hf`."""
    from sia_convert.export import export_base

    target = Path(path)
    folder = tiny_hf(arch, target.with_name(f"{target.stem}-hf"), **over)
    return export_base(folder, target, dtype)
