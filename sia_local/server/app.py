"""The routes: bodies are parsed and prompts rendered in worker threads, answers are read from the engine's mail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from .. import __version__
from ..errors import SiaError
from ..files import settings_json
from ..generation.sia import SIA
from ..llama.chat import render_chat
from ..llama.model import Model
from ..views.trace import config_dict
from . import asking, messages, metrics, responses
from .chats import ChatReply
from .completions import CompletionReply
from .engine import EngineThread, Order, UnavailableError
from .errors import RefusedError
from .fields import AskingBody, Body, ChatBody, CompletionBody, DetokenizeBody, TemplateBody, TokenizeBody
from .guard import Guard, InUse, client_key
from .replies import Reply
from .settings import ServerConfig
from .stream import Answer, Mailbox, error_response, json_response, soon

# Threads that parse, render and tokenize. More would take turns at Python with the engine and the event loop.
WORKERS = 2

# Bytes of a body that is parsed sooner than a thread would take it over: tenths of a millisecond.
SHORT_BODY = 1 << 13

B = TypeVar("B", bound=Body)
T = TypeVar("T")
W = TypeVar("W", bound=AskingBody)


class Server:
    """An engine behind routes. `app` is the ASGI application; its lifespan starts and stops the engine."""

    def __init__(
        self,
        config: ServerConfig,
        load: Callable[[], SIA],
        defaults: asking.Defaults,
        on_failure: Callable[[], None] | None = None,
    ):
        self.config, self.defaults = config, defaults
        self.engine = EngineThread(load, config.queue, config.per_client, on_failure)
        self.started = int(time.time())
        self._workers: CapacityLimiter | None = None
        self.app = FastAPI(openapi_url=None, lifespan=self._lifespan)
        self._route()
        self.app.add_middleware(Guard, keys=config.api_key, origins=config.cors)
        self.app.add_middleware(InUse, engine=self.engine)
        if config.cors:
            self.app.add_middleware(
                CORSMiddleware, allow_origins=list(config.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
            )
        for kind in (RefusedError, SiaError, ValidationError, ClientDisconnect, HTTPException, Exception):
            self.app.add_exception_handler(kind, _answer_error)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.engine.hand_over = partial(soon, asyncio.get_running_loop())
        self.engine.start()
        yield
        await self.stop()

    async def stop(self) -> None:
        """Lets running texts end, or cuts them after the grace period; returns when the contexts are freed."""
        self.engine.stop(self.config.grace)
        await to_thread.run_sync(self.engine.join)

    @property
    def sia(self) -> SIA:
        sia = self.engine.sia
        if sia is None or self.engine.state not in ("ready", "stopping"):
            raise UnavailableError(f"the server is {self.engine.state}; try again", 2)
        return sia

    @property
    def name(self) -> str:
        return self.config.alias or self.sia.model.path.stem

    def _route(self) -> None:
        get: dict[str, Callable[..., Any]] = {
            "/health": self.health,
            "/v1/models": self.models,
            "/props": self.props,
            "/slots": self.slots,
            "/metrics": self.metrics,
        }
        chats = self._writes(ChatBody, asking.chat, ChatReply)
        items = self._writes(
            responses.ResponsesBody,
            lambda sia, defaults, body: asking.chat(sia, defaults, responses.as_chat(body)),
            responses.ResponsesReply,
        )
        blocks = self._writes(
            messages.MessagesBody,
            lambda sia, defaults, body: asking.chat(sia, defaults, messages.as_chat(body)),
            messages.MessagesReply,
        )
        post: dict[str, Callable[..., Any]] = {
            "/v1/chat/completions": chats,
            "/v1/completions": self._writes(CompletionBody, asking.completion, CompletionReply),
            "/v1/responses": items,
            "/v1/messages": blocks,
            "/v1/messages/count_tokens": self.count_tokens,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
            "/apply-template": self.apply_template,
        }
        if self.config.page:
            get["/"] = self.page
        # As llama-server has them, with and without the version.
        get |= {"/models": self.models, "/v1/health": self.health}
        post |= {"/chat/completions": chats, "/responses": items}
        for path, handler in get.items():
            self.app.add_api_route(path, handler, methods=["GET", "HEAD"])
        for path, handler in post.items():
            self.app.add_api_route(path, handler, methods=["POST"])

    async def count_tokens(self, request: Request) -> Response:
        body = await self._body(request, messages.CountBody)
        prompt = await self._aside(lambda: asking.prompt_of(self.sia, messages.as_chat(body)))
        return json_response({"input_tokens": len(prompt.tokens)})

    def _writes(
        self,
        kind: type[W],
        ask: Callable[[SIA, asking.Defaults, W], asking.Asked],
        reply_of: Callable[[Model, str, asking.Asked, W], Reply],
    ) -> Callable[[Request], Awaitable[Response]]:
        """The handler of requests for text. A worker thread reads what is asked and hands it to the engine, so that it
        does not wait for this loop."""

        async def handler(request: Request) -> Response:
            body, mailbox = await self._body(request, kind), Mailbox()
            client = client_key(request.headers) or (request.client.host if request.client is not None else "")

            def begin() -> tuple[Order, Reply]:
                asked = ask(self.sia, self.defaults, body)
                reply = reply_of(self.sia.model, self.name, asked, body)
                reply.order = order = Order(asked.jobs, mailbox.post, reply.readings, asked.top or 0, client)
                self.engine.submit(order)
                return order, reply

            order, reply = await self._aside(begin)
            return Answer(self.engine, order, mailbox, reply, body.stream, self.config.send_timeout)

        return handler

    async def health(self) -> Response:
        state = self.engine.state
        if state != "ready":
            problem = RefusedError(503, f"the server is {state}", "unavailable_error", code=state)
            return error_response(problem, "/health")
        return json_response({"status": "ok"})

    async def models(self) -> Response:
        model = self.sia.model
        meta = {"n_vocab": model.n_vocab, "n_ctx": self.sia.n_ctx, "n_ctx_train": model.n_ctx_train}
        meta |= {"n_embd": model.n_embd, "size": model.size_bytes}
        whole = {"id": self.name, "object": "model", "created": self.started, "owned_by": "sia_local", "meta": meta}
        return json_response({"object": "list", "data": [whole]})

    async def props(self) -> Response:
        """What the server runs with, for clients and the page."""
        sia, config = self.sia, self.defaults.config
        model, value = sia.model, sia.value
        params = config_dict(config)["sampling"] | {"max_tokens": self.defaults.max_tokens or -1}
        return json_response(
            {
                "default_generation_settings": {"n_ctx": sia.n_ctx, "params": params},
                "total_slots": sia.slots,
                "model_path": model.path.name,
                "model_alias": self.name,
                "chat_template": model.chat_template or "",
                "bos_token": model.token_text(model.bos) if model.bos >= 0 else "",
                "eos_token": model.token_text(model.eos) if model.eos >= 0 else "",
                "build_info": f"sia_local {__version__}",
                "modalities": {"vision": False, "audio": False},
                "sia": {
                    "value": value.name if value is not None else None,
                    "spread": value.spread if value is not None else None,
                    "max_candidates": value.max_candidates if value is not None else None,
                    "config": settings_json({k: v for k, v in config_dict(config).items() if k != "sampling"}),
                    "beta_in_spreads": _in_spreads(sia, config.beta, config.beta_unit),
                },
            }
        )

    async def slots(self) -> Response:
        """What each slot is at. Taken while the engine works, so the numbers of one slot may be a token apart."""
        sia = self.sia
        live = {one.slot: one.job for one in list(sia.desk.loop.live)}
        out = []
        for i, slot in enumerate(sia.engine.slots):
            job = live.get(i)
            out.append(
                {
                    "id": i,
                    "n_ctx": sia.n_ctx,
                    "is_processing": job is not None,
                    "n_past": slot.n_past,
                    "n_prompt_tokens": job.stats.prompt_tokens if job is not None else 0,
                    "n_decoded": job.stats.steps if job is not None else 0,
                    "junctions": job.stats.junctions if job is not None else 0,
                }
            )
        return json_response(out)

    async def metrics(self) -> Response:
        headers = {"Process-Start-Time-Unix": str(self.started)}
        return PlainTextResponse(metrics.text(self.engine), headers=headers, media_type="text/plain; version=0.0.4")

    async def page(self) -> Response:
        return HTMLResponse(_page())

    async def tokenize(self, request: Request) -> Response:
        body = await self._body(request, TokenizeBody)
        return json_response({"tokens": await self._aside(self._tokens, body)})

    def _tokens(self, body: TokenizeBody) -> list[Any]:
        model = self.sia.model
        tokens = model.tokenize(body.content, add_special=body.add_special, parse_special=body.parse_special)
        if not body.with_pieces:
            return list(tokens)
        return [{"id": token, "piece": _piece(model.piece(token)) or model.token_text(token)} for token in tokens]

    async def detokenize(self, request: Request) -> Response:
        body = await self._body(request, DetokenizeBody)
        model = self.sia.model
        if any(not 0 <= token < model.n_vocab for token in body.tokens):
            raise RefusedError(400, f"tokens: expected ids of 0 to {model.n_vocab - 1}", param="tokens")
        return json_response({"content": b"".join(map(model.piece, body.tokens)).decode("utf-8", "replace")})

    async def apply_template(self, request: Request) -> Response:
        body = await self._body(request, TemplateBody)
        return json_response({"prompt": await self._aside(self._rendered, body)})

    def _rendered(self, body: TemplateBody) -> str:
        model = self.sia.model
        told = {**self.sia.setup.template_args, **body.chat_template_kwargs}
        extra = {**told, "add_generation_prompt": body.add_generation_prompt}
        if body.tools:
            extra["tools"] = body.tools
        bos = model.token_text(model.bos) if model.bos >= 0 else ""
        eos = model.token_text(model.eos) if model.eos >= 0 else ""
        return render_chat(model.chat_template or "", list(map(asking.message, body.messages)), bos, eos, extra)

    async def _aside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Runs what takes time beside the event loop."""
        if self._workers is None:
            self._workers = CapacityLimiter(WORKERS)
        return await to_thread.run_sync(work, *arguments, limiter=self._workers)

    async def _body(self, request: Request, kind: type[B]) -> B:
        """A request's body as `kind`, read no further than the limit; a long one is parsed in a worker thread."""
        limit, data = self.config.max_body, bytearray()
        announced = request.headers.get("content-length", "0")
        too_large = announced.isdigit() and int(announced) > limit
        if not too_large:
            async for part in request.stream():
                data += part
                if too_large := len(data) > limit:
                    break
        if too_large:
            message = f"the request is larger than {limit} bytes; send less, or start the server with --max-body"
            raise RefusedError(413, message, code="request_too_large", headers={"Connection": "close"})
        if len(data) <= SHORT_BODY:
            return kind.model_validate_json(bytes(data))
        return await self._aside(kind.model_validate_json, bytes(data))


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        codes = {404: ("not_found", "there is no such address here; see docs/server.md for those there are")}
        code, message = codes.get(error.status_code, ("http_error", str(error.detail)))
        error = RefusedError(error.status_code, message, code=code, headers=dict(error.headers or {}))
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    return error_response(error, request.url.path)


def _in_spreads(sia: SIA, beta: float, unit: str) -> float | None:
    spread = sia.value.spread if sia.value is not None else None
    return beta if unit == "spread" else beta * spread if spread else None


def _piece(data: bytes) -> str | list[int]:
    """As llama-server tells pieces: text, or bytes where it is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def _page() -> str:
    return (resources.files(__package__) / "page.html").read_text(encoding="utf-8")
