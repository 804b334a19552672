"""A small hub on the loopback interface, for the client as it is: branches, metadata, files by ranges and redirects.

It can be told to misbehave. Weights are kept the way the hub keeps large files: metadata have their SHA-256, and their
address redirects to another one.
"""

import hashlib
import json
import os
import re
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Hub:
    """Repositories by name: branches by name: files by name. ``faults`` are taken from the front, one a request.

    A fault is ``"drop"`` (the connection breaks in the middle of the answer), ``"busy"`` (429) or ``"ill"`` (503), of a
    file (``org/name/branch/file``). ``claims`` has the contents that metadata are made of where these are not the
    contents that are served. ``log`` counts requests, ``served`` the bytes of a file that were sent.
    """

    repos: dict[str, dict[str, dict[str, bytes]]]
    claims: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    log: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    endpoint: str = field(default_factory=lambda: os.environ["HF_ENDPOINT"])

    def commit(self, repo: str, branch: str) -> str:
        """A commit as git would call it: of the branch's name and contents."""
        digest = hashlib.sha1(f"{repo} {branch}".encode())
        for name, content in sorted(self.repos[repo][branch].items()):
            digest.update(name.encode() + hashlib.sha1(content).digest())
        return digest.hexdigest()

    def branch_of(self, repo: str, revision: str) -> str | None:
        """The branch of that name or commit."""
        return next((b for b in self.repos[repo] if revision in (b, self.commit(repo, b))), None)

    def __enter__(self) -> "Hub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", urlsplit(self.endpoint).port), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log[path.split("/")[1]] += 1
        for pattern, serve in (
            (r"/api/models/([^/]+/[^/]+)/refs", self.refs),
            (r"/api/models/([^/]+/[^/]+)/revision/(.+)", self.revision),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?(.*)", self.tree),
            (r"/api/models/([^/]+/[^/]+)/paths-info/(.+)", self.paths),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
            (r"/cdn/([^/]+/[^/]+)/([^/]+)/(.+)", self.content),
            (r"/api/models/([^/]+/[^/]+)", self.revision),
        ):
            if found := re.fullmatch(pattern, path):
                repo, *rest = found.groups()
                if repo not in self.hub.repos:
                    return self.refuse(404, "RepoNotFound")
                if pattern.endswith("refs") or not rest:
                    return serve(repo) if not rest and serve == self.refs else serve(repo, "main")
                branch = self.hub.branch_of(repo, rest[0])
                return serve(repo, branch, *rest[1:]) if branch else self.refuse(404, "RevisionNotFound")
        return self.refuse(404, "EntryNotFound")

    def refuse(self, status: int, code: str) -> None:
        self.send(b"", status, {"X-Error-Code": code, "Retry-After": "0"})

    def send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.finish_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def finish_headers(self) -> None:
        """A connection that were kept alive would go on talking to this hub after the next test has begun its own."""
        self.send_header("Connection", "close")
        self.end_headers()

    def json(self, value: object) -> None:
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def refs(self, repo: str) -> None:
        names = self.hub.repos[repo]
        branches = [
            {"name": b, "ref": f"refs/heads/{b}", "targetCommit": self.hub.commit(repo, b)} for b in names
        ]
        self.json({"branches": branches, "tags": [], "converts": []})

    def claimed(self, repo: str, branch: str, name: str) -> bytes:
        return self.hub.claims.get(f"{repo}/{branch}/{name}", self.hub.repos[repo][branch][name])

    def entry(self, repo: str, branch: str, name: str) -> dict[str, object]:
        content = self.claimed(repo, branch, name)
        found = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if name.endswith(".safetensors"):
            sha = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": sha, "sha256": sha, "size": len(content), "pointerSize": 134}
        return found

    def revision(self, repo: str, branch: str) -> None:
        entries = [self.entry(repo, branch, name) for name in self.hub.repos[repo][branch]]
        siblings = [
            {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"], "lfs": e.get("lfs")}
            for e in entries
        ]
        said = {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": self.hub.commit(repo, branch),
            "private": False,
        }
        self.json({**said, "siblings": siblings, "tags": [], "downloads": 0})

    def tree(self, repo: str, branch: str, folder: str) -> None:
        self.json([self.entry(repo, branch, name) for name in self.hub.repos[repo][branch]])

    def paths(self, repo: str, branch: str) -> None:
        try:
            wanted = json.loads(self.body)["paths"]
        except ValueError:
            wanted = parse_qs(self.body.decode())["paths"]
        wanted = [wanted] if isinstance(wanted, str) else wanted
        there = self.hub.repos[repo][branch]
        self.json([self.entry(repo, branch, name) for name in wanted if name in there])

    def resolve(self, repo: str, branch: str, name: str) -> None:
        if name not in self.hub.repos[repo][branch]:
            return self.refuse(404, "EntryNotFound")
        entry = self.entry(repo, branch, name)
        if "lfs" not in entry:
            return self.content(repo, branch, name)
        commit = self.hub.commit(repo, branch)
        sizes = {"X-Linked-Size": str(entry["size"]), "X-Linked-Etag": f'"{entry["lfs"]["oid"]}"'}
        where = {"Location": f"{self.hub.endpoint}/cdn/{repo}/{branch}/{name}", "X-Repo-Commit": commit}
        return self.send(b"", 302, {**sizes, **where})

    def content(self, repo: str, branch: str, name: str) -> None:
        key, content = f"{repo}/{branch}/{name}", self.hub.repos[repo][branch][name]
        status, span, whole = 200, None, len(content)
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(asked[1]), min(int(asked[2] or whole - 1), whole - 1)
            if start >= whole:
                return self.send(b"", 416, {"Content-Range": f"bytes */{whole}"})
            content, status, span = content[start : end + 1], 206, f"bytes {start}-{end}/{whole}"
            self.hub.ranges.append((key, start, end + 1))
        fault = self.hub.faults[key].pop(0) if self.command == "GET" and self.hub.faults[key] else ""
        if fault in ("busy", "ill"):
            return self.refuse({"busy": 429, "ill": 503}[fault], "")
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        headers |= {"Content-Range": span} if span else {}
        headers["X-Repo-Commit"] = self.hub.commit(repo, self.hub.branch_of(repo, branch))
        if fault == "drop":
            self.send_response(status)
            for header, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(header, value)
            self.finish_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return None
        if self.command == "GET":
            self.hub.served[key] += len(content)
        return self.send(content, status, headers)
