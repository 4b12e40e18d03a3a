"""A Hub of the tests: an HTTP server that speaks what `huggingface_hub` asks of a model repository.

Weights are kept as the real Hub keeps large files: `resolve` answers with a redirect to another host name,
here "localhost" for "127.0.0.1", which must not be sent a token. `Fault`s make requests fail.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass
class Fault:
    """What to do to the next `times` requests whose "METHOD /path" matches.

    `status`: answer with it. `stall_seconds`: wait before answering. `drop_after`: send so many bytes of the
    body, wait `hold_seconds`, close. `ignore_range`: send all. `flip_byte`: send that byte changed.
    `headers`: send these instead of one's own.
    """

    match: str
    status: int | None = None
    drop_after: int | None = None
    hold_seconds: float = 0.0
    stall_seconds: float = 0.0
    ignore_range: bool = False
    flip_byte: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1


@dataclass
class Repository:
    """Branches by name, and the files of every commit."""

    token: str | None = None
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        digest = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode(), usedforsecurity=False)
        self.commits[digest.hexdigest()] = dict(files)
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Seen:
    """One request."""

    line: str
    headers: dict[str, str]
    sent_bytes: int = 0


class StandIn(ThreadingHTTPServer):
    """The server; `repositories`, `faults` and `seen` belong to the test."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.before_commit: Callable[[], object] = lambda: None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo_id: str, files: dict[str, bytes], *, token: str | None = None) -> str:
        """Make a repository with one commit and give that."""
        repository = self.repositories.setdefault(repo_id, Repository(token=token))
        for content in files.values():
            self.large[hashlib.sha256(content).hexdigest()] = content
        return repository.commit(files)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.resolve(revision) or ""]

    def lines(self, match: str) -> list[Seen]:
        return [seen for seen in self.seen if re.search(match, seen.line)]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what some tests are about."""


@contextlib.contextmanager
def running() -> Iterator[StandIn]:
    """A server in a thread, gone at the end of the block."""
    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for head and body
    server: StandIn

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.entry = Seen(f"{self.command} {path}", {k.lower(): v for k, v in self.headers.items()})
        self.server.seen.append(self.entry)
        self.fault = self._next_fault()
        time.sleep(self.fault.stall_seconds)
        if self.fault.status is not None:
            return self._send(self.fault.status, b"{}")
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, self.entry.line):
                return getattr(self, method)(*found.groups(), body=body)
        return self._send(404, b"{}")

    def _next_fault(self) -> Fault:
        for fault in self.server.faults:
            if fault.times > 0 and re.search(fault.match, self.entry.line):
                fault.times -= 1
                return fault
        return Fault("")

    def _repository(self, repo_id: str) -> Repository | None:
        """The repository, or None after an answer that there is none for this token."""
        repository = self.server.repositories.get(repo_id)
        sent = self.entry.headers.get("authorization")
        if repository is None or (repository.token and sent != f"Bearer {repository.token}"):
            status = 401 if repository is not None else 404
            self._send(status, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _commit(self, repo_id: str, revision: str) -> str | None:
        repository = self._repository(repo_id)
        commit = None if repository is None else repository.resolve(revision)
        if repository is not None and commit is None:
            self._send(404, b'{"error": "Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _info(self, repo_id: str, revision: str | None, *, body: bytes) -> None:
        if commit := self._commit(repo_id, revision or "main"):
            names = [{"rfilename": name} for name in self.server.files(repo_id, commit)]
            self._json({"id": repo_id, "modelId": repo_id, "sha": commit, "siblings": names, "tags": []})

    def _resolve(self, repo_id: str, revision: str, name: str, *, body: bytes) -> None:
        commit = self._commit(repo_id, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit}
        content = self.server.files(repo_id, commit).get(name)
        if content is None:
            return self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        if not name.endswith(LARGE_SUFFIXES):
            return self._content(content, {**headers, "ETag": f'"{git_hash(content)}"'})
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        location = f"http://localhost:{self.server.server_port}/large/{digest}"
        return self._send(302, b"", {**headers, "Location": location})

    def _large(self, digest: str, *, body: bytes) -> None:
        self._content(self.server.large[digest], {"ETag": f'"{digest}"'})

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        start = re.fullmatch(r"bytes=(\d+)-", self.entry.headers.get("range", ""))
        headers = {**headers, "Accept-Ranges": "bytes"}
        if self.fault.flip_byte is not None:
            changed = bytearray(content)
            changed[self.fault.flip_byte] ^= 1
            content = bytes(changed)
        if start is None or self.fault.ignore_range:
            return self._send(200, content, headers)
        at, total = int(start[1]), len(content)
        return self._send(206, content[at:], {**headers, "Content-Range": f"bytes {at}-{total - 1}/{total}"})

    def _create(self, *, body: bytes) -> None:
        wanted = json.loads(body)
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        url = {"url": f"{self.server.endpoint}/{repo_id}"}
        if repo_id in self.server.repositories:
            return self._json(url, status=409)
        self.server.add(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return self._json(url)

    def _branch(self, repo_id: str, branch: str, *, body: bytes) -> None:
        repository = self.server.repositories[repo_id]
        if branch in repository.branches:
            return self._json({}, status=409)
        repository.branches[branch] = repository.branches["main"]
        return self._json({})

    def _yaml(self, *, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, repo_id: str, revision: str, *, body: bytes) -> None:
        if commit := self._commit(repo_id, revision):
            files, answers = self.server.files(repo_id, commit), []
            for name in (file["path"] for file in json.loads(body)["files"]):
                is_large = name.endswith(LARGE_SUFFIXES)
                hashed = (lambda content: hashlib.sha256(content).hexdigest()) if is_large else git_hash
                oid = {"oid": hashed(files[name])} if name in files else {}
                mode = "lfs" if is_large else "regular"
                answers.append({"path": name, "uploadMode": mode, "shouldIgnore": False, **oid})
            self._json({"files": answers})

    def _batch(self, repo_id: str, *, body: bytes) -> None:
        objects = json.loads(body)["objects"]
        for item in objects:
            if item["oid"] not in self.server.large:
                item["actions"] = {"upload": {"href": f"{self.server.endpoint}/upload/{item['oid']}"}}
        self._json({"objects": objects, "transfer": "basic"})

    def _upload(self, digest: str, *, body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != digest:
            return self._json({}, status=400)
        self.server.large[digest] = body
        return self._json({})

    def _commit_files(self, repo_id: str, revision: str, *, body: bytes) -> None:
        self.server.before_commit()
        head = self._commit(repo_id, revision)
        if head is None:
            return None
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit", head) != head:
            return self._json({"error": "parentCommit is not the head"}, status=412)
        files = dict(self.server.files(repo_id, head))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                del files[value["path"]]
        commit = self.server.repositories[repo_id].commit(files, revision)
        return self._json(
            {"commitUrl": f"{self.server.endpoint}/{repo_id}/commit/{commit}", "commitOid": commit}
        )

    def _json(self, content: dict[str, Any], *, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sent = {"Content-Length": str(len(content)), **(headers or {}), **self.fault.headers}
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            content = b""
        if self.fault.drop_after is not None:
            content = content[: self.fault.drop_after]
        with contextlib.suppress(OSError):
            self.wfile.write(content)
            self.wfile.flush()
            self.entry.sent_bytes = len(content)
        if self.fault.drop_after is not None:
            time.sleep(self.fault.hold_seconds)
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def git_hash(content: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


_REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (rf"GET /api/models/{_REPO}(?:/revision/(.+))?", "_info"),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/([^/]+)/(.+)", "_resolve"),
    (r"(?:GET|HEAD) /large/([0-9a-f]{64})", "_large"),
    (r"POST /api/repos/create", "_create"),
    (rf"POST /api/models/{_REPO}/branch/(.+)", "_branch"),
    (r"POST /api/validate-yaml", "_yaml"),
    (rf"POST /api/models/{_REPO}/preupload/(.+)", "_preupload"),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", "_batch"),
    (r"PUT /upload/([0-9a-f]{64})", "_upload"),
    (rf"POST /api/models/{_REPO}/commit/(.+)", "_commit_files"),
]
