"""Rewards that need PyTorch: Hugging Face sequence classifiers, `hf:NAME` to `sia_local.rewards`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from sia_local.errors import ConfigError, IncompatibleError
from sia_local.rewards.load import FunctionReward

from ..formats.hf import adds_bos, load_whole


def load_hf(name: str, batch: int = 8, max_length: int = 4096) -> FunctionReward:
    """A reward model from a folder or the hub: its one logit for the chat of prompt and response.

    Prompt and response are rendered with the model's chat template, as Skywork-Reward-V2 is used. bfloat16 on
    a GPU, float32 on the CPU. A chat longer than the model reads, or than `max_length` tokens, keeps its first token
    and its end, where the score is read; how many were cut is said on stderr. ConfigError when the model cannot be
    loaded, IncompatibleError for several outputs.
    """
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        model = load_whole(transformers.AutoModelForSequenceClassification, name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(f"reward model {name!r} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
    if model.config.num_labels != 1:
        raise IncompatibleError(
            f"{name} has {model.config.num_labels} outputs, a reward model has 1: name one trained as a reward"
        )
    model.to(device).eval()
    room = min(max_length, longest(model, tokenizer))

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        texts = [render(tokenizer, chat(p, r)) for p, r in zip(prompts, responses, strict=True)]
        rows = token_rows(tokenizer, texts, room, f"hf:{name}")
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out: list[float] = [0.0] * len(rows)
        for at in range(0, len(order), batch):
            part = order[at : at + batch]
            for i, value in zip(part, _logits(model, [rows[i] for i in part]), strict=True):
                out[i] = value
        return out

    return FunctionReward(f"hf:{name}", score)


def token_rows(tokenizer: Any, texts: Sequence[str], room: int, reader: str) -> list[list[int]]:
    """Token ids of texts, at least one each. Of more than `room` the first and the end are kept, where the score is
    read; how many texts were cut is said on stderr, in the name of who reads them."""
    rows = [tokenizer(text, verbose=False).input_ids or [tokenizer.eos_token_id or 0] for text in texts]
    if cut := sum(len(ids) > room for ids in rows):
        said = f"{cut} of {len(rows)} texts are longer than {room} tokens; what is cut is their beginning"
        print(f"{reader}: {said}", file=sys.stderr)
    return [ids if len(ids) <= room else [ids[0], *ids[len(ids) - room + 1 :]] for ids in rows]


def longest(model: Any, tokenizer: Any) -> int:
    """Tokens that the model has positions for, as far as it and its tokenizer say."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    said = (getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
    return min((int(n) for n in said if n), default=1 << 30)


def _logits(model: Any, rows: list[list[int]]) -> list[float]:
    """The one logit of each row, padded on the right with a token that none of them holds.

    transformers reads the score at the last token that is not padding; where padding is the end token, as in many
    checkpoints, it would take a real end for padding and read one token early.
    """
    import torch

    width = max(map(len, rows))
    pad = -1  # where no row is padded, none of its tokens may count as padding either
    if any(len(row) < width for row in rows):
        seen = {token for row in rows for token in row}
        pad = next(token for token in range(len(seen) + 1) if token not in seen)
        if pad >= model.config.get_text_config().vocab_size:
            return [value for row in rows for value in _logits(model, [row])]
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    model.config.get_text_config().pad_token_id = model.config.pad_token_id = pad
    with torch.no_grad():
        return [float(x) for x in model(input_ids=ids, attention_mask=mask).logits[:, 0].float()]


def chat(prompt: str, response: str) -> list[dict[str, str]]:
    """A dialogue of one turn, as a chat template reads it."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """A dialogue as a reward model reads it; without a chat template, its texts one after the other."""
    if not tokenizer.chat_template:
        return "".join(message["content"] for message in messages)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    # Where the tokenizer adds the beginning of the sequence itself, the template's would be a second one.
    return text.removeprefix(tokenizer.bos_token) if adds_bos(tokenizer) else text
