"""Prometheus metrics of an engine: llama-server's names, and what steering did."""

from __future__ import annotations

from collections.abc import Iterator

from .engine import EngineThread


def _figures(engine: EngineThread) -> Iterator[tuple[str, str, str, float]]:
    """(name, type, help, value) of everything that is known."""
    totals = engine.totals
    decodes = engine.sia.engine.decodes if engine.sia is not None else 0
    orders = list(engine.orders)
    running = sum(order.running for order in orders)
    deferred = sum(order.waits for order in orders)
    yield "llamacpp:prompt_tokens_total", "counter", "Prompt tokens read.", totals.prompt_tokens
    yield "llamacpp:prompt_tokens_cached_total", "counter", "Prompt tokens that were there.", totals.cached_tokens
    yield "llamacpp:prompt_seconds_total", "counter", "Time to the first tokens.", totals.prompt_seconds
    yield "llamacpp:tokens_predicted_total", "counter", "Tokens written.", totals.steps
    yield "llamacpp:tokens_predicted_seconds_total", "counter", "Time spent writing.", totals.writing_seconds
    yield "llamacpp:n_decode_total", "counter", "Decodes of the base.", decodes
    yield "llamacpp:n_tokens_max", "counter", "Longest sequence seen, tokens.", totals.longest
    yield (
        "llamacpp:prompt_tokens_seconds",
        "gauge",
        "Prompt tokens a second.",
        _ratio(totals.prompt_tokens, totals.prompt_seconds),
    )
    yield (
        "llamacpp:predicted_tokens_seconds",
        "gauge",
        "Tokens a second of one text.",
        _ratio(totals.steps, totals.writing_seconds),
    )
    yield "llamacpp:requests_processing", "gauge", "Requests being written.", running
    yield "llamacpp:requests_deferred", "gauge", "Requests that wait for a slot.", deferred
    yield "llamacpp:n_busy_slots_per_decode", "gauge", "Texts that share a round.", _ratio(totals.steps, totals.rounds)
    store = engine.sia.store if engine.sia is not None else None
    used = store.used if store is not None else 0
    yield "sia_prompt_cache_bytes", "gauge", "Memory of conversations that lost their slot.", used
    yield "sia_requests_total", "counter", "Requests taken.", totals.requests
    yield "sia_requests_refused_total", "counter", "Requests refused because too many waited.", totals.refused
    yield "sia_requests_cancelled_total", "counter", "Requests whose reader went away.", totals.cancelled
    yield (
        "sia_junctions_total",
        "counter",
        "Tokens at which the gate opened and values tilted the choice.",
        totals.junctions,
    )
    yield "sia_steered_tokens_total", "counter", "Junctions whose likeliest token changed.", totals.flips
    yield "sia_kl_nats_total", "counter", "KL from the base, all tokens, nats.", totals.kl
    yield "sia_kl_steering_nats_total", "counter", "The part of it that steering spent, nats.", totals.kl_steering
    yield "sia_value_rows_total", "counter", "Candidates scored.", totals.values_asked


def text(engine: EngineThread) -> str:
    return "".join(
        f"# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value:.10g}\n"
        for name, kind, help, value in _figures(engine)
    )


def _ratio(amount: float, over: float) -> float:
    return amount / over if over else 0.0
