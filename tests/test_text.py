from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sia_local.text import TextStream


def stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text, out = TextStream(lambda i: pieces[i], stop), []
    for i in range(len(pieces)):
        shown, stopped, _ = text.push(i, last=i == len(pieces) - 1)
        out.append(shown)
        if stopped:
            return out, True
    return out, False


def test_a_character_split_over_tokens_appears_once_whole() -> None:
    euro = "€".encode()
    assert stream([b"a", euro[:1], euro[1:2], euro[2:] + b"b"]) == (["a", "", "", "€b"], False)


def test_an_unfinished_character_at_the_end_is_replaced() -> None:
    assert stream([b"a", "€".encode()[:2]]) == (["a", "\ufffd"], False)


def test_a_stop_string_never_leaks_and_false_starts_come_out() -> None:
    assert stream([b"one ST", b"ART two ST", b"OP three"], ("STOP",)) == (["one ", "START two ", ""], True)
    assert stream([b"ST", b"O"], ("STOP",)) == (["", "STO"], False)


def test_the_earliest_stop_string_wins() -> None:
    assert stream([b"a b c"], ("c", "b")) == (["a "], True)


@given(st.text(min_size=1), st.data())
def test_any_split_gives_the_text_back(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert "".join(stream(pieces)[0]) == text
