from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sia_local.errors import DataError
from sia_local.views.answer import answer_report
from sia_local.views.svg import Series, histogram, lines, standalone, ticks


def candidate(token: int, text: str, p_base: float, p_steered: float, value: float | None = None) -> dict[str, Any]:
    return {"token": token, "text": text, "logit": 0.0, "value": value, "p_base": p_base, "p_steered": p_steered}


TRACE = [
    {"index": 0, "token": 1, "text": "A", "entropy": 0.2, "steered": False, "kl": 0.01,
     "candidates": [candidate(1, "A", 0.9, 0.95, None)]},
    {"index": 1, "token": 3, "text": " kind</script>", "entropy": 1.6, "steered": True, "kl": 0.25,
     "candidates": [candidate(2, " dark", 0.5, 0.3, 0.1), candidate(3, " kind</script>", 0.4, 0.7, 0.9)]},
    {"index": 2, "token": 4, "text": "", "entropy": 0.1, "steered": False, "kl": 0.0, "candidates": []},
]  # fmt: skip


def test_answer_report_tells_where_and_why() -> None:
    html = answer_report(TRACE, {"prompt": "Say <b>", "beta": 2, "value": None, "kl_steering": 0.125})
    assert "3 tokens, 1 of them junctions (33\u00a0%); steering changed the likeliest word at 1." in html
    assert "KL from the base: 0.26 nats in all, 0.12 of them by steering." in html and "kl_steering" not in html
    assert "Say &lt;b&gt;" in html
    assert "<dt>beta</dt><dd>2</dd>" in html and "<dt>value</dt>" not in html
    found = re.search(r'id="data">(.*?)</script>', html, re.S)
    assert found is not None
    data = json.loads(found[1])
    assert data[1]["story"] == (
        "The base leaned to “dark” (50\u00a0%); the values favoured “kind</script>”. Steering made "
        "“kind</script>” the likeliest, from 40\u00a0% to 70\u00a0%. Drawn: “kind</script>”."
    )
    assert html.count('class="t j turned"') == 2  # the word and the legend's own example
    assert 'aria-label="kind&lt;/script&gt;, junction 1, turned"' in html
    assert html.count("</script>") == 2
    assert not re.search(r"""(src|href)=|https?://|@import|url\(""", html)


def test_answer_report_of_nothing_and_of_no_trace() -> None:
    assert "0 tokens, no junction" in answer_report([], {})
    with pytest.raises(DataError, match="record 0 lacks entropy"):
        answer_report([{"index": 0, "token": 1, "text": "", "steered": False, "kl": 0.0}], {})


def test_ticks_are_round_and_cover() -> None:
    assert ticks(0.43, 0.95) == [0.4, 0.6, 0.8, 1.0]
    assert ticks(0, 17) == [0, 5, 10, 15, 20]
    for low, high in ((2, 2), (0, 3e-15), (1e6, 1e6 + 1e-6)):
        assert ticks(low, high)[0] <= low < high + 0.1 < ticks(low, high)[-1]


def test_charts_are_well_formed_and_skip_what_is_not_a_number() -> None:
    from xml.etree import ElementTree

    nan = float("nan")
    chart = lines(
        [Series("a < b", [(0, 0.5, 0.4, 0.6), (2, 0.9, 0.8, 1.0), (3, nan, nan, nan)]), Series("c", [])],
        "KL", "reward", title="t",
    )  # fmt: skip
    root = ElementTree.fromstring(standalone(chart))
    assert len(root.findall(".//{*}circle")) == 2
    assert lines([], "x", "y", title="t") == ""
    bars = ElementTree.fromstring(histogram([0, 1, 2], [3, 1], "nats", title="h", rules=[(1.0, "threshold")]))
    assert [r.get("class") for r in bars.findall(".//{*}rect")] == ["box", "box"]
