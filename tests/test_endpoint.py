"""What is asked again, after how long, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from fake_http import answering

from sia_local.endpoint import Endpoint, EndpointError


def test_what_may_pass_is_asked_again_after_a_growing_while() -> None:
    script: list[tuple[Any, ...]] = [(503, {}), (0, None), (429, {}, {"Retry-After": "7"}), (502, {}), (200, {"a": 1})]
    seen: list[tuple[str, Any]] = []
    waits: list[float] = []

    def answer(path: str, body: Any) -> tuple[Any, ...]:
        seen.append((path, body))
        return script[len(seen) - 1]

    with answering(answer) as url:
        assert Endpoint(f"{url}/", wait=waits.append).ask("/x", {"b": [2]}) == {"a": 1}
    assert seen == [("/x", {"b": [2]})] * 5
    assert 0.5 <= waits[0] <= 0.75 and 1 <= waits[1] <= 1.5 and waits[2] == 7 and 4 <= waits[3] <= 6


@pytest.mark.parametrize(
    ("answer", "status", "tries", "message"),
    [
        ((503, {"error": {"message": "full"}}), 503, 3, "/x answers 503: full; asked 3 times"),
        ((400, {"error": {"message": "no model m"}}), 400, 1, "/x answers 400: no model m"),
        ((422, {"detail": [{"loc": ["top_k"]}]}), 422, 1, "answers 422: .*top_k"),
        ((401, "who?"), 401, 1, "answers 401: who?"),
        ((302, {}, {"Location": "http://other/x"}), 302, 1, "/x answers 302: .*, and sends to http://other/x"),
        ((0, None), None, 3, "/x does not answer"),
    ],
)
def test_an_error_is_one_sentence_with_the_servers_words(
    answer: tuple[Any, ...], status: int | None, tries: int, message: str
) -> None:
    asked: list[str] = []

    def answers(path: str, body: Any) -> tuple[Any, ...]:
        asked.append(path)
        return answer

    with (
        answering(answers) as url,
        pytest.raises(EndpointError, match=message) as caught,
    ):
        Endpoint(url, tries=3, wait=lambda _: None).ask("/x")
    assert (caught.value.status, len(asked)) == (status, tries) and "\n" not in str(caught.value)


def test_an_address_where_nobody_is_or_that_is_none() -> None:
    with pytest.raises(EndpointError, match=r"does not answer .*asked 2 times"):
        Endpoint("http://127.0.0.1:9", tries=2, wait=lambda _: None).ask("/x")
    with pytest.raises(EndpointError, match=r"expected http://HOST:PORT"):
        Endpoint("127.0.0.1", tries=2).ask("/x")
