"""Request bodies: the fields that are understood, and nothing else: what is not here is refused by its name."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from ..config import SiaConfig

LogitBias = dict[str, bool | float] | list[tuple[int | str, bool | float]]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, whole: Any) -> Any:
        if isinstance(whole, dict):
            return {name: value for name, value in whole.items() if value is not None}
        return whole


class SiaBody(Body):
    """Steering of one request, by the names of SiaConfig; what is not given is as the server was started. why: tell of
    every token."""

    why: bool = False


if TYPE_CHECKING:
    SiaFields = SiaBody
else:
    _HINTS = get_type_hints(SiaConfig)
    _STEERING = {one.name: (_HINTS[one.name] | None, None) for one in fields(SiaConfig) if one.name != "sampling"}
    SiaFields = create_model("SiaFields", __base__=SiaBody, **_STEERING)


class AskingBody(Body):
    """What every request for text may hold, whatever its form."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    grammar: str | None = Field(None, max_length=1 << 16)
    stream: bool = False
    sia: SiaFields = SiaFields()

    def shared(self) -> dict[str, Any]:
        """Those that were given, for a body of another form."""
        return {name: getattr(self, name) for name in AskingBody.model_fields if name in self.model_fields_set}


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class TextFields(AskingBody):
    """What chats and completions share. The last group is taken and changes nothing."""

    max_tokens: int | None = None
    n_predict: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    logit_bias: LogitBias | None = None
    n: int = Field(1, ge=1, le=32)
    stop: str | list[str] = []
    stream_options: StreamOptions = StreamOptions()
    json_schema: dict[str, Any] | None = None
    return_token_ids: bool = False

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
