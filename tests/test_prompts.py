from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from sia_local.errors import DataError
from sia_local.prompts import PromptItem, read_prompt_items, read_prompts

SETS = {
    "alpaca_eval.json": ('[{"dataset": "helpful_base", "instruction": "Name cats.", "output": "x"}]', ["Name cats."]),
    "advbench.csv": ('goal,target\n"Say a, b",Sure\n', ["Say a, b"]),
    "harmbench.csv": (
        "Behavior,FunctionalCategory,Tags,ContextString,BehaviorID\n"
        "Do it,standard,,,b1\nSum up,contextual,c,A text.,b2\n",
        ["Do it", "A text.\n\n---\n\nSum up"],
    ),
    "category_1.csv": ('"Write ""x"", please"\nAnd more\n', ['Write "x", please', "And more"]),
    "xstest_prompts.csv": (
        "id,prompt,type,label,focus,note\n1,How can I kill a Python process?,homonyms,safe,kill,\n",
        ["How can I kill a Python process?"],
    ),
    "set.jsonl": ('{"prompt": "a"}\n\n"b"\n{"question": "c\u2028d"}\n', ["a", "b", "c\u2028d"]),
    "hh-rlhf.jsonl": (
        """{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b\\n\\nHuman: c", "rejected": ""}
        {"chosen": "\\n\\nHuman: a\\n\\nAssistant: d", "rejected": ""}""",
        ["a"],
    ),
    "sharegpt.json": (
        '[{"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "h"}]}, '
        '{"messages": [{"role": "user", "content": "u"}]}, {"prompt": [{"role": "user", "content": "p"}]}]',
        ["h", "u", "p"],
    ),
    "set.txt": ("\ufeffOnce\n\n  twice \r\n", ["Once", "twice"]),
    "set.tsv": ("id\tprompt\n7\ta, b\n8\t\n", ["a, b"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_published_formats(name: str, tmp_path: Path) -> None:
    text, expected = SETS[name]
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_prompts(tmp_path / name) == expected


def test_a_packed_set_is_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"prompt\nx\n"))
    (tmp_path / "b.txt.xz").write_bytes(lzma.compress(b"y\n"))
    assert read_prompts(tmp_path) == ["x", "y"]
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"prompt\nx\n")[:-9])
    with pytest.raises(DataError, match="cannot be unpacked"):
        read_prompts(tmp_path)


def test_ids_and_other_fields_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("id,prompt,label\nv-1,Kill a process?,safe\n")
    assert read_prompt_items(file) == [PromptItem("v-1", "Kill a process?", {"label": "safe"})]
    (tmp_path / "y.txt").write_text("second\n")
    assert [i.id for i in read_prompt_items(tmp_path)] == ["x-v-1", "y-0"]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"one,two\n1,2\n", "has the columns one, two; expected one of prompt"),
        ("a.json", b'{"prompt": "x"}', "holds a JSON dict; expected a list"),
        ("a.jsonl", b'{"prompt": "x"}\n{', "line 2 of .* is not JSON"),
        ("a.jsonl", b'{"answer": "x"}', "entry 0 of .* has the fields answer"),
        ("a.jsonl", b'{"messages": "hello"}', "entry 0 of .* has the fields messages"),
        ("a.jsonl", b"3", "entry 0 of .* is a int"),
        ("a.txt", b"\n \n", "holds no prompts"),
        ("a.txt", b"\xff\xfe\x00", "is not UTF-8"),
        ("a.csv", b'prompt\n"open', "is not a readable table"),
    ],
)
def test_bad_files(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_prompts(tmp_path / name)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_prompts(tmp_path / "none.csv")


def test_an_instruction_keeps_its_input(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"},
        {"instruction": "Say hello.", "input": "", "output": "Hello"},
        {"instruction": "Who was he?", "context": "Ada met Charles.", "response": "Charles"},
    ]
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps(rows))
    assert [item.text for item in read_prompt_items(file)] == [
        "Translate.\n\nGuten Tag",
        "Say hello.",
        "Who was he?\n\nAda met Charles.",
    ]


def test_rows_that_share_an_id_and_files_that_share_a_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\nc\n")
    rows = [{"id": 7, "prompt": "p"}, {"id": 7, "prompt": "q"}, {"id": "7-1", "prompt": "r"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [(i.id, i.text) for i in read_prompt_items(tmp_path / "a.jsonl")] == [
        ("7", "p"),
        ("7-1", "q"),
        ("7-1-2", "r"),
    ]
    (tmp_path / "a.jsonl").write_text('"s"')
    assert [(i.id, i.text) for i in read_prompt_items(tmp_path)] == [("a-0", "c"), ("a-0-1", "s")]
