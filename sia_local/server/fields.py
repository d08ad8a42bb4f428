"""Request bodies: the fields that are understood, and nothing else: what is not here is refused by its name."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LogitBias = dict[str, bool | float] | list[tuple[int | str, bool | float]]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, whole: Any) -> Any:
        if isinstance(whole, dict):
            return {name: value for name, value in whole.items() if value is not None}
        return whole


class SiaFields(Body):
    """Steering of one request, by the names of SiaConfig; what is not given is as the server was started. why: tell of
    every token."""

    k: int | None = None
    gate: str | None = None
    threshold: float | None = None
    entropy: str | None = None
    rate: float | None = None
    first_n: int | None = None
    ratio: float | None = None
    varentropy_threshold: float | None = None
    gain_threshold: float | None = None
    beta: float | None = None
    beta_unit: str | None = None
    center: bool | None = None
    clip: tuple[float, float] | None = None
    tail: bool | None = None
    kl_per_token: float | None = None
    kl_total: float | None = None
    min_share: float | None = None
    row_group: int | None = None
    steer: str | None = None
    why: bool = False


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class TextFields(Body):
    """What chats and completions share. The last group is taken and changes nothing."""

    model: str | None = None
    max_tokens: int | None = None
    n_predict: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    logit_bias: LogitBias | None = None
    seed: int | None = None
    n: int = Field(1, ge=1, le=32)
    stop: str | list[str] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    grammar: str | None = Field(None, max_length=1 << 16)
    json_schema: dict[str, Any] | None = None
    return_token_ids: bool = False
    sia: SiaFields = SiaFields()

    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    cache_prompt: Any = None
    id_slot: Any = None
    timings_per_token: Any = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] = ""
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: Any = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class Function(Body):
    name: str = Field(pattern=r"^[\w.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """Any type, so that one that is not offered is refused by its name."""

    model_config = ConfigDict(extra="allow")
    type: str = "function"
    function: Function | None = None


class Named(Body):
    name: str


class NamedChoice(Body):
    type: Literal["function"]
    function: Named


class ChatBody(TextFields):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] = {}


class CompletionBody(TextFields):
    prompt: str | list[int] | list[str | list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: Literal[1] = 1
    suffix: Literal[""] = ""


class TokenizeBody(Body):
    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    tokens: list[int]


class TemplateBody(Body):
    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool = True
    tools: list[dict[str, Any]] = []
    chat_template_kwargs: dict[str, Any] = {}
