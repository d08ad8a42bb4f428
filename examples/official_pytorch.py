"""The published algorithm in plain PyTorch, to state the speed ratio on the same weights honestly.

Two renditions of Sparse Inference-time Alignment (arXiv 2602.21215), both written from its description:

published  every step encodes the whole prefix with the base, and at a junction prefix + candidate with the
           value model, for each of the k candidates (here as one batch, which favours PyTorch).
cached     a KV cache for both. At a junction the value model reads the accepted tokens it has not seen and
           all k candidates in one forward, each candidate masked to see the prefix and itself, then forgets
           the candidates. This is the best that ordinary PyTorch does: quote the ratio to this one.

The weights come from GGUF files (dequantized; qwen3 with tied embeddings, such as those that
`sia-local bench --synthetic` writes) or from Hugging Face folders. Junctions come from a random gate at a
forced rate, so that random weights give honest costs. float32 and bfloat16 are both tried and the faster is
kept. Needs `sia-local[convert]`.

    python examples/official_pytorch.py BASE.gguf VALUE.gguf --tokens 24 --rate 0.2 --threads 2
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config, Qwen3ForCausalLM

LAYER_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`"""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def load_gguf(path: Path) -> tuple[Qwen3ForCausalLM, torch.Tensor | None]:
    """A qwen3 GGUF as a float32 Hugging Face model, and the value head [n_embd + 1], bias last, if any."""
    import gguf

    reader = gguf.GGUFReader(path)

    def field(key: str) -> Any:
        return reader.fields[key].contents()

    if field("general.architecture") != "qwen3":
        raise SystemExit(f"{path} is {field('general.architecture')}, this example reads qwen3 GGUF files")
    tensors = {t.name: t for t in reader.tensors}
    if "output.weight" in tensors:
        raise SystemExit(f"{path} has its own output matrix; give the merged layout with tied embeddings")
    config = Qwen3Config(
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        hidden_size=field("qwen3.embedding_length"),
        intermediate_size=field("qwen3.feed_forward_length"),
        num_hidden_layers=field("qwen3.block_count"),
        num_attention_heads=field("qwen3.attention.head_count"),
        num_key_value_heads=field("qwen3.attention.head_count_kv"),
        head_dim=field("qwen3.attention.key_length"),
        rms_norm_eps=field("qwen3.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("qwen3.rope.freq_base")},
        max_position_embeddings=field("qwen3.context_length"),
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    model.to_empty(device="cpu")
    state = model.state_dict()
    for name, tensor in tensors.items():
        state[hf_name(name)].copy_(torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))
    model.tie_weights()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its buffer is computed, not loaded
    head = None
    if "sia.head.weight" in reader.fields:
        head = torch.tensor([*field("sia.head.weight"), field("sia.head.bias")], dtype=torch.float32)
    return model.eval(), head


def load(path: Path) -> tuple[Any, torch.Tensor | None]:
    if path.is_dir():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), None
    return load_gguf(path)


@dataclass(frozen=True)
class Steering:
    """k candidates, strength beta, junctions at random with this rate (the cost does not depend on which)."""

    k: int = 10
    beta: float = 1.0
    rate: float = 0.2
    seed: int = 0


class Sia:
    """Base and value model with the steered step; `cached` selects the rendition."""

    def __init__(self, base: Any, value: Any, head: torch.Tensor, cached: bool):
        self.base, self.value, self.head, self.cached = base, value.model, head, cached

    def values(self, hidden: torch.Tensor) -> torch.Tensor:
        """V = w·h + b in float32; hidden [k, n_embd] -> [k]."""
        return hidden.float() @ self.head[:-1] + self.head[-1]

    def begin(self, prompt: list[int]) -> None:
        """With caches, both models read the prompt here; as published, nothing is kept."""
        self.tokens = list(prompt)
        if self.cached:
            self.base_cache, self.value_cache = DynamicCache(), DynamicCache()
            ids = torch.tensor([prompt])
            self.base(input_ids=ids[:, :-1], past_key_values=self.base_cache, logits_to_keep=1)
            self.value(input_ids=ids[:, :-1], past_key_values=self.value_cache)

    def base_logits(self) -> torch.Tensor:
        """Next-token logits, float32 [n_vocab]."""
        if self.cached:
            seen = self.base_cache.get_seq_length()
            ids = torch.tensor([self.tokens[seen:]])
            out = self.base(input_ids=ids, past_key_values=self.base_cache, logits_to_keep=1)
        else:
            out = self.base(input_ids=torch.tensor([self.tokens]), use_cache=False, logits_to_keep=1)
        return out.logits[0, -1].float()

    def score(self, candidates: torch.Tensor) -> torch.Tensor:
        """V of prefix + candidate for each candidate, float32 [k]."""
        k = len(candidates)
        if not self.cached:
            prefix = torch.tensor([self.tokens]).expand(k, -1)
            out = self.value(input_ids=torch.cat([prefix, candidates[:, None]], 1), use_cache=False)
            return self.values(out.last_hidden_state[:, -1])
        seen, length = self.value_cache.get_seq_length(), len(self.tokens)
        queue = length - seen
        sees = torch.ones(queue + k, length + k, dtype=torch.bool).tril(seen)
        sees[queue:, length:] = torch.eye(k, dtype=torch.bool)
        dtype = self.value.embed_tokens.weight.dtype
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)
        positions = torch.cat([torch.arange(seen, length), torch.full((k,), length)])
        ids = torch.cat([torch.tensor(self.tokens[seen:], dtype=torch.long), candidates])
        out = self.value(
            input_ids=ids[None],
            attention_mask=mask[None, None],
            position_ids=positions[None],
            past_key_values=self.value_cache,
        )
        self.value_cache.crop(-k)
        return self.values(out.last_hidden_state[0, queue:])

    @torch.inference_mode()
    def generate(self, prompt: list[int], n: int, steering: Steering) -> tuple[list[int], float]:
        """n tokens after the prompt, and their seconds (reading the prompt into caches is not timed)."""
        rng = np.random.default_rng(steering.seed)
        self.begin(prompt)
        started = time.perf_counter()
        for _ in range(n):
            logits, candidates = self.base_logits().topk(steering.k)
            probabilities = torch.softmax(logits, 0)
            entropy = -(probabilities * probabilities.log()).sum()
            junction = rng.random() < steering.rate and bool(torch.isfinite(entropy))
            scores = logits + steering.beta * self.score(candidates) if junction else logits
            p = torch.softmax(scores.double(), 0).numpy()
            self.tokens.append(int(candidates[rng.choice(steering.k, p=p / p.sum())]))
        return self.tokens[len(prompt) :], time.perf_counter() - started


def measure(
    base: Any,
    value: Any,
    head: torch.Tensor,
    cached: bool,
    prompt: list[int],
    n: int,
    repeat: int,
    s: Steering,
) -> list[float]:
    """Seconds a token of each of `repeat` runs, after a short warm-up."""
    sia = Sia(base, value, head, cached)
    sia.generate(prompt, 2, Steering(k=s.k, rate=1.0, seed=s.seed))
    return [sia.generate(prompt, n, Steering(s.k, s.beta, s.rate, s.seed + i))[1] / n for i in range(repeat)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="GGUF file or Hugging Face folder")
    parser.add_argument("value", type=Path, help="merged GGUF value model, or a folder (then the head is random)")
    parser.add_argument("--mode", choices=("published", "cached", "both"), default="both")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--prompt-tokens", "-p", type=int, default=64)
    parser.add_argument("--tokens", "-n", type=int, default=24)
    parser.add_argument("--repeat", "-r", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", "-t", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    (base, _), (value, head) = load(args.base), load(args.value)
    if head is None:
        head = torch.randn(value.config.hidden_size + 1) / value.config.hidden_size**0.5
    prompt = np.random.default_rng(args.seed).integers(0, base.config.vocab_size // 2, args.prompt_tokens)
    modes = {"published": [False], "cached": [True], "both": [False, True]}[args.mode]
    steering = Steering(k=args.k, rate=args.rate, seed=args.seed)
    rows = []
    for dtype in ("float32", "bfloat16") if args.dtype == "auto" else (args.dtype,):
        base, value = base.to(getattr(torch, dtype)), value.to(getattr(torch, dtype))
        for cached in modes:
            seconds = measure(base, value, head, cached, prompt.tolist(), args.tokens, args.repeat, steering)
            algorithm, mean, sd = "cached" if cached else "published", float(np.mean(seconds)), float(np.std(seconds))
            rows.append({"algorithm": algorithm, "dtype": dtype, "seconds_per_token": mean, "sd": sd})
            if not args.json:
                print(f"{algorithm:9} {dtype:8} {mean:.4f} ± {sd:.4f} s/token")
    setting = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": args.threads,
        "base": args.base.name,
        "value": args.value.name,
        **{name: getattr(args, name) for name in ("prompt_tokens", "tokens", "repeat", "rate", "k")},
    }
    best = {
        name: min((r for r in rows if r["algorithm"] == name), key=lambda r: r["seconds_per_token"])
        for name in dict.fromkeys(r["algorithm"] for r in rows)
    }
    if args.json:
        print(json.dumps({**setting, "runs": rows, "best": best}))
    else:
        print(
            "best:",
            ", ".join(f"{k} {v['dtype']} {v['seconds_per_token']:.4f} s/token" for k, v in best.items()),
        )


if __name__ == "__main__":
    main()
