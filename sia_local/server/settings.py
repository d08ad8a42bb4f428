"""What a person can set about the server, checked on construction. Free of the web libraries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import ConfigError


@dataclass(frozen=True)
class ServerConfig:
    """Sizes are bytes, times seconds. queue: requests that wait for a slot; one more is answered 503."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 for every one."})
    port: int = field(default=8080, metadata={"help": "Port to listen on; 0 takes a free one."})
    slots: int = field(default=4, metadata={"help": "Texts written at once; each holds --ctx tokens."})
    queue: int = field(default=64, metadata={"help": "Requests that may wait for a slot; beyond them: 503."})
    per_client: int = field(
        default=0, metadata={"help": "Requests that one client (key, else address) may have open, else 429; 0: any."}
    )
    api_key: tuple[str, ...] = field(
        default=(), metadata={"help": "Keys that are let in, separated by commas.", "show": "none, everyone is"}
    )
    cors: tuple[str, ...] = field(
        default=(), metadata={"help": "Web pages of other origins that may ask, or *.", "show": "none"}
    )
    alias: str | None = field(
        default=None, metadata={"help": "Name of the model in answers.", "show": "that of its file"}
    )
    max_tokens: int = field(
        default=0, metadata={"help": "Length of an answer where a request says none; 0: as the context allows."}
    )
    max_body: int = field(default=4 << 20, metadata={"help": "Largest request, bytes; beyond it: 413."})
    prompt_cache: int = field(
        default=1 << 29,
        metadata={"help": "Memory for conversations that lost their slot to another, bytes; 0: they are read again."},
    )
    send_timeout: float = field(
        default=30.0, metadata={"help": "Seconds that a reader who takes nothing keeps its connection."}
    )
    grace: float = field(default=10.0, metadata={"help": "Seconds that running texts have to end when told to stop."})
    page: bool = field(default=True, metadata={"help": "The page at /."})

    def __post_init__(self) -> None:
        least = {
            "port": 0,
            "slots": 1,
            "queue": 0,
            "per_client": 0,
            "max_tokens": 0,
            "max_body": 1,
            "prompt_cache": 0,
            "grace": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {low} or more")
        for name in ("grace", "send_timeout"):
            if not math.isfinite(getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; expected seconds, such as 10")
        if self.port > 65535:
            raise ConfigError(f"port is {self.port}; expected at most 65535")
        if self.send_timeout <= 0:
            raise ConfigError(f"send_timeout is {self.send_timeout}; expected above 0 seconds")
        if any(not key.strip() for key in self.api_key):
            raise ConfigError("an API key is empty; give at least one character, or no key")
