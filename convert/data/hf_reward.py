"""Rewards that need PyTorch: Hugging Face sequence classifiers, `hf:NAME` to `sia_local.rewards`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sia_local.errors import ConfigError, IncompatibleError
from sia_local.rewards.load import FunctionReward


def load_hf(name: str, batch: int = 8, max_length: int = 4096) -> FunctionReward:
    """A reward model from a folder or the hub: its one logit for the chat of prompt and response.

    Prompt and response are rendered with the model's chat template, as Skywork-Reward-V2 is used. bfloat16 on
    a GPU, float32 on the CPU. ConfigError when it cannot be loaded, IncompatibleError for several outputs.
    """
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    transformers.utils.logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = transformers.AutoModelForSequenceClassification.from_pretrained(name, dtype=dtype)
    except (OSError, ValueError) as error:
        raise ConfigError(f"reward model {name!r} cannot be loaded: {str(error).splitlines()[0][:200]}") from error
    if model.config.num_labels != 1:
        raise IncompatibleError(
            f"{name} has {model.config.num_labels} outputs, a reward model has 1: name one trained as a reward"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.to(device).eval()

    def score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        texts = [render(tokenizer, chat(p, r)) for p, r in zip(prompts, responses, strict=True)]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out: list[float] = [0.0] * len(texts)
        with torch.no_grad():
            for at in range(0, len(order), batch):
                rows = order[at : at + batch]
                inputs: Any = tokenizer(
                    [texts[i] for i in rows],
                    return_tensors="pt",
                    padding=True,
                    truncation=True,
                    max_length=max_length,
                ).to(device)
                for i, value in zip(rows, model(**inputs).logits[:, 0].float().tolist(), strict=True):
                    out[i] = value
        return out

    return FunctionReward(f"hf:{name}", score)


def chat(prompt: str, response: str) -> list[dict[str, str]]:
    """A dialogue of one turn, as a chat template reads it."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def render(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """A dialogue as a reward model reads it; without a chat template, its texts one after the other."""
    if not tokenizer.chat_template:
        return "".join(message["content"] for message in messages)
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    # The tokenizer adds the beginning of the sequence itself; the template's would be a second one.
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text
