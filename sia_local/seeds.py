"""Seeds that follow from names, so that a text has the same one in every arm, shard and run."""

from __future__ import annotations

import hashlib


def text_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of a prompt's n-th text, below 2^32: the same whatever else is run, so that arms differ by steering and
    not by luck alone."""
    digest = hashlib.sha256(f"{seed}/{prompt_id}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "little")
