"""What llama.cpp does not refuse but asserts, which would end the process: looked for in the metadata before it loads.

The conditions are those of llama_model_base::load_hparams and llama_vocab::impl::load of the pinned release.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..errors import ModelFileError
from .gguf import GgufMetadata
from .texts import Texts

MOST_LAYERS, MOST_EXPERTS = 512, 1024
LONGEST_WINDOW = 1 << 24  # room for a mask of it is made before it is looked at
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
# Their graphs rotate whole heads whose keys are as wide as their values.
WHOLE_HEADS = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe")
ROTATES = (*WHOLE_HEADS, "gemma3", "lfm2", "qwen35")
SHOWN = 40


def check_sound(meta: GgufMetadata, tokens: Texts | None) -> None:
    """tokens: of its vocabulary, None for a file without. Raises ModelFileError."""
    _check_tokens(meta, tokens)
    _check_tensors(meta)
    arch = meta.get("general.architecture", "")

    def key(name: str, default: Any = 0) -> Any:
        return meta.get(f"{arch}.{name}", default)

    def expect(holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise ModelFileError(
                f"{meta.path}: {arch}.{name} is {_shown(key(name, None))}, expected {expected}; the file is damaged, "
                "download or convert it again"
            )

    layers = key("block_count", None)
    if layers is None:
        return
    expect(1 <= layers <= MOST_LAYERS, "block_count", f"1 to {MOST_LAYERS}")
    expect(key("nextn_predict_layers") <= layers, "nextn_predict_layers", f"at most the {layers} blocks")
    expect(key("embedding_length") >= 1, "embedding_length", "1 or more")
    for name in ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_used_count"):
        expect(np.ndim(key(name)) == 0 or len(key(name)) == layers, name, f"a number for each of the {layers} blocks")
    for name in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        expect(0 <= key(name, 0.0) < 1, name, "a small number, 0 or more")
    _check_experts(key, expect)
    expect(key("attention.sliding_window") <= LONGEST_WINDOW, "attention.sliding_window", f"at most {LONGEST_WINDOW}")
    scaling = key("rope.scaling.type", "linear")
    expect(scaling in ROPE_SCALINGS, "rope.scaling.type", f"one of {', '.join(ROPE_SCALINGS)}")
    _check_heads(arch, key, expect)


def _check_tensors(meta: GgufMetadata) -> None:
    for part in meta.parts:
        # Tables of ids that some architectures have (d2t, tid2eid) are no weights.
        if names := [name for name in part.integers() if name.endswith(".weight") and "2" not in name]:
            raise ModelFileError(
                f"{part.path}: the weights {names[0][:SHOWN]} are whole numbers, expected a float or quantized format; "
                "the file is damaged, download or convert it again"
            )


def _check_tokens(meta: GgufMetadata, tokens: Texts | None) -> None:
    """Equal tokens, of which llama.cpp asserts that there are none."""
    if tokens is not None and tokens.may_repeat():
        # An empty one gets a name of its own there.
        counts = Counter(token for token in tokens.entries() if token)
        token, times = counts.most_common(1)[0] if counts else (b"", 0)
        if times > 1:
            where = [i for i, other in enumerate(tokens.entries()) if other == token][:2]
            raise ModelFileError(
                f"{meta.path}: the token {token[:SHOWN].decode('utf-8', 'replace')!r} stands twice in the vocabulary, "
                f"at {where[0]} and {where[1]}; each has to stand once, convert the model again"
            )


def _check_experts(key: Any, expect: Any) -> None:
    count, used = key("expert_count"), int(np.max(key("expert_used_count"), initial=0))
    groups, groups_used = key("expert_group_count"), key("expert_group_used_count")
    expect(0 <= count <= MOST_EXPERTS, "expert_count", f"at most {MOST_EXPERTS}")
    expect(min(count, 1) <= used <= count, "expert_used_count", f"{min(count, 1)} to the {count} experts there are")
    expect(groups < max(count, 1), "expert_group_count", f"fewer than the {count} experts, in equal groups")
    if groups > 1:
        expect(count % groups == 0, "expert_group_count", f"a divisor of the {count} experts")
        expect(0 < groups_used < groups, "expert_group_used_count", f"1 to {groups - 1}")


def _check_heads(arch: str, key: Any, expect: Any) -> None:
    heads = np.atleast_1d(key("attention.head_count"))
    if not heads[0]:
        return
    width = key("embedding_length") // int(heads[0])
    keys, values = key("attention.key_length", width), key("attention.value_length", width)
    rotated = key("rope.dimension_count", keys)
    expect(rotated % 2 == 0 and rotated <= keys, "rope.dimension_count", f"an even number of at most {keys}")
    # Over none of its dimensions the rotation of the pinned release does not end.
    expect(rotated > 0 or arch not in ROTATES, "rope.dimension_count", "2 or more")
    if arch in WHOLE_HEADS:
        expect(keys == values, "attention.value_length", f"{keys}, as wide as the keys")
        expect(rotated == keys, "rope.dimension_count", f"{keys}, as wide as the keys")
    kv = np.atleast_1d(key("attention.head_count_kv", heads))
    for of_all, of_keys in np.broadcast(heads, kv):
        divides = of_keys == 0 or of_all % of_keys == 0
        expect(bool(divides), "attention.head_count_kv", f"a divisor of the {of_all} heads")


def _shown(value: Any) -> str:
    return str(value)[:SHOWN]
