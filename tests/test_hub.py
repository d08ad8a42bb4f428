"""hf:owner/repo[:quant]: which file is meant, and a hub on loopback that refuses, has not got it, or breaks off."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sia_local import hub
from sia_local.cli.resolve import model_paths
from sia_local.errors import ConfigError, ModelFileError, SiaError

pytest.importorskip("huggingface_hub")

PLAIN = ["README.md", "mmproj-m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K.gguf", "m-IQ4_XS.gguf"]
PARTS = [f"Q6_K/m-Q6_K-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("files", "quant", "chosen"),
    [
        (PLAIN, None, ["m-Q4_K_M.gguf"]),
        (PLAIN, "q8_0", ["m-Q8_0.gguf"]),
        (PLAIN, "Q4_K", ["m-Q4_K.gguf"]),
        (PLAIN, "iq4_xs", ["m-IQ4_XS.gguf"]),
        (PLAIN, "m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        (["b.gguf", "a-f16.gguf"], None, ["a-f16.gguf"]),
        ([*PLAIN, *reversed(PARTS)], "Q6_K", PARTS),
    ],
)
def test_the_file_that_is_meant(files: list[str], quant: str | None, chosen: list[str]) -> None:
    assert hub.choose(files, quant, "o/r") == chosen


@pytest.mark.parametrize(
    ("files", "quant", "says"),
    [
        (PLAIN, "Q4_0", "has no 'Q4_0'; name one of m-IQ4_XS.gguf, m-Q4_K.gguf"),
        (["README.md", "mmproj-f16.gguf"], None, "has no GGUF model among its 2 files"),
        (PARTS[:2], None, "-00003-of-00003.gguf is not there"),
        (PARTS[1:], None, "has no GGUF model"),
    ],
)
def test_a_repository_without_it_is_told(files: list[str], quant: str | None, says: str) -> None:
    with pytest.raises(ModelFileError, match=hub.re.escape(says)):
        hub.choose(files, quant, "o/r")


@pytest.mark.parametrize("spec", ["hf:", "hf:one", "hf:a/b/c", "hf:a/b:", "hf:../x/y"])
def test_a_name_that_is_none_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="expected hf:owner/repo"):
        hub.parse(spec)


class Hub(ThreadingHTTPServer):
    """The few answers of a hub that a download asks for. files: by repository. broken: of each transfer only so many
    bytes are sent. refuses: the status for a repository, or for one path of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuses: dict[str, int] = {}
        self.broken: int | None = None
        self.seen: list[tuple[str, str, str | None]] = []
        self.ranges: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.seen.append((self.command, path, self.headers.get("Authorization")))
        if (status := next((s for p, s in self.server.refuses.items() if p in path), None)) is not None:
            return self._send(status, b"")
        owner, repo, *rest = path.removeprefix("/api/models/").removeprefix("/").split("/")
        files = self.server.files.get(f"{owner}/{repo}")
        if files is None:
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/"):
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            return self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        content = files.get("/".join(rest[2:]))
        if content is None:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": "c" * 40})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        start = 0
        self.server.ranges.append(self.headers.get("Range"))
        if (ranged := self.headers.get("Range")) and status == 200:
            start, status = int(ranged.removeprefix("bytes=").partition("-")[0]), 206
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "GET":
            whole = self.path.startswith("/api/") or self.server.broken is None
            self.wfile.write(content[start:] if whole else content[start : start + (self.server.broken or 0)])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    from huggingface_hub import constants, file_download

    made = Hub()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    # What HF_ENDPOINT and HF_HUB_CACHE set when the package is imported.
    monkeypatch.setattr(constants, "ENDPOINT", made.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{made.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    hub.fetch.cache_clear()
    yield made
    made.shutdown()
    made.server_close()
    hub.fetch.cache_clear()


def refused(spec: str, *parts: str) -> None:
    with pytest.raises(SiaError) as error:
        hub.fetch(spec)
    sentence = str(error.value)
    assert sentence.startswith(spec[:6]) and "\n" not in sentence and ";" in sentence, sentence
    for part in parts:
        assert part in sentence, sentence


def test_a_file_is_fetched_once_and_found_without_network(server: Hub, tmp_path: Path) -> None:
    server.files["o/r"] = {"m-Q4_K_M.gguf": b"GGUF four", "m-Q8_0.gguf": b"GGUF eight"}
    path = hub.fetch("hf:o/r")
    assert path.name == "m-Q4_K_M.gguf" and path.read_bytes() == b"GGUF four" and tmp_path in path.parents
    assert hub.fetch("hf:o/r:q8_0").read_bytes() == b"GGUF eight"
    asked = len(server.seen)
    assert hub.fetch("hf:o/r") == path and len(server.seen) == asked
    server.shutdown()
    server.server_close()
    hub.fetch.cache_clear()
    assert hub.fetch("hf:o/r") == path
    refused("hf:o/other", server.address, "cannot be reached", "check the network")


def test_a_split_file_is_fetched_whole(server: Hub) -> None:
    server.files["o/r"] = {name: name.encode() for name in reversed(PARTS)}
    first = hub.fetch("hf:o/r:Q6_K")
    assert first.name == "m-Q6_K-00001-of-00003.gguf"
    assert sorted(path.name for path in first.parent.iterdir()) == [name.rpartition("/")[2] for name in PARTS]


def test_the_token_goes_along(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["o/r"] = {"m.gguf": b"GGUF"}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.fetch("hf:o/r")
    assert {token for *_, token in server.seen} == {"Bearer hf_secret"}


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["/api/models/o/r", "/o/r/resolve"])
def test_a_refusal_names_the_token(status: int, where: str, server: Hub) -> None:
    server.files["o/r"] = {"m.gguf": b"GGUF"}
    server.refuses[where] = status
    refused("hf:o/r", f"HTTP {status}", "HF_TOKEN")


def test_what_is_missing_is_named(server: Hub) -> None:
    refused("hf:o/none", "no such repository", "HTTP 404", "check the name")
    server.files["o/r"] = {"m-Q8_0.gguf": b"GGUF"}
    refused("hf:o/r:Q2_K", "has no 'Q2_K'", "m-Q8_0.gguf")
    server.refuses["resolve/main/m-Q8_0.gguf"] = 404
    refused("hf:o/r", "not got the file that it lists", "HTTP 404")
    server.refuses = {"/api/": 500}
    refused("hf:o/r", "HTTP 500", "try again later")


def test_a_broken_transfer_leaves_no_model_and_goes_on_later(server: Hub, tmp_path: Path) -> None:
    content = bytes(range(256)) * 100
    server.files["o/r"], server.broken = {"m.gguf": content}, 10_000
    refused("hf:o/r", "broke off", "run again")
    assert not list(tmp_path.rglob("*.gguf"))
    server.broken = None
    assert hub.fetch("hf:o/r").read_bytes() == content


def test_a_transfer_goes_on_where_it_broke(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    content = bytes(range(256)) * 100
    server.files["o/r"], server.broken = {"m.gguf": content}, 10_000
    assert hub.fetch("hf:o/r").read_bytes() == content
    assert [r for r in server.ranges if r] == ["bytes=8192-", "bytes=16384-"]


def test_m_and_v_take_it_with_name_and_weight(server: Hub, tmp_path: Path) -> None:
    server.files["o/r"] = {"m-Q4_K_M.gguf": b"GGUF four", "m-Q8_0.gguf": b"GGUF eight"}
    base, values = model_paths({"model": "hf:o/r", "value": ("hf:o/r:Q8_0", "hf:o/r:0.5", "kind=hf:o/r:Q8_0:-1")})
    eight = base.with_name("m-Q8_0.gguf")
    assert values == [f"{eight}", f"{base}:0.5", f"kind={eight}:-1"]


def test_the_endpoint_and_the_cache_are_those_of_the_environment(server: Hub, tmp_path: Path) -> None:
    server.files["o/r"] = {"m.gguf": b"GGUF"}
    environment = {**os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "sia_local", "fetch", "hf:o/r"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.strip())
    assert path.read_bytes() == b"GGUF" and tmp_path / "home" in path.parents


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    hub.fetch.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'sia-local\[hub\]'"):
        hub.fetch("hf:o/r")
