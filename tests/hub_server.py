"""A Hugging Face Hub on the loopback, with as much of its protocol as the tests need."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator

ERRORS = {  # what a request for this repository ends in: status, and X-Error-Code
    "org/gated": (403, "GatedRepo"),
    "org/private": (401, "RepoNotFound"),
    "org/broken": (500, ""),
}


class Hub(http.server.ThreadingHTTPServer):
    """Repositories, each a list of commits, each a dict of files; a commit's name is its number."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.requests: list[str] = []  # method and path of each
        self.private: dict[str, bool] = {}
        self.may_write = True
        self.cut = 0  # bytes that bodies lack at their end, as of a broken connection

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub  # pyright: ignore[reportIncompatibleVariableOverride]

    def answer(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) - self.server.cut])

    def do_GET(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        if self.path.startswith("/api/models/"):
            return self.describe()
        match = re.fullmatch(r"/(org/[\w-]+)/resolve/([^/]+)/(.+)", self.path)
        if not match or match[1] not in self.server.repositories:
            status, code = ERRORS.get(match[1] if match else "", (404, "RepoNotFound"))
            return self.answer(status, X_Error_Code=code)
        commits = self.server.repositories[match[1]]
        number = len(commits) - 1 if match[2] == "main" else int(match[2], 16)
        if number >= len(commits):
            return self.answer(404, X_Error_Code="RevisionNotFound")
        commit = {"X_Repo_Commit": f"{number:040x}"}
        if match[3] not in commits[number]:
            return self.answer(404, X_Error_Code="EntryNotFound", **commit)
        body = commits[number][match[3]]
        etag = hashlib.sha256(body).hexdigest()
        self.answer(200, body, ETag=f'"{etag}"', **commit)

    do_HEAD = do_GET

    def describe(self) -> None:
        """Answer with the files of the newest commit of a repository."""
        name = "/".join(self.path.split("/")[3:5])
        if name not in self.server.repositories:
            status, code = ERRORS.get(name, (404, "RepoNotFound"))
            return self.answer(status, X_Error_Code=code)
        files = self.server.repositories[name][-1]
        siblings = [{"rfilename": file} for file in files]
        private = self.server.private.get(name, False)
        reply: object = {"id": name, "sha": "0" * 40, "private": private, "siblings": siblings}
        if "/tree/" in self.path:
            entry = lambda file: {"type": "file", "path": file, "size": 1, "oid": "0" * 40}
            reply = [*map(entry, files)]
        self.answer(200, json.dumps(reply).encode(), Content_Type="application/json")

    def do_POST(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        reply: dict = {}
        if not self.server.may_write:
            return self.answer(401, b'{"error": "Invalid username or password."}')
        if self.path == "/api/repos/create":
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}"
            reply = {"url": f"{self.server.url}/{name}"}
            if name in self.server.repositories:
                return self.answer(409, json.dumps(reply).encode())
            self.server.repositories[name] = [{}]
            visibility = "private" if request.get("private") else request.get("visibility")
            self.server.private[name] = visibility == "private"
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            reply = {
                "files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            }
        elif "/commit/" in self.path:
            name = self.path.split("/api/models/")[1].split("/commit/")[0]
            files = [json.loads(line) for line in body.splitlines()]
            new = {f["value"]["path"]: f["value"]["content"] for f in files if f["key"] == "file"}
            new = {path: base64.b64decode(content) for path, content in new.items()}
            gone = {f["value"]["path"] for f in files if f["key"] == "deletedFile"}
            commits = self.server.repositories[name]
            old = {file: content for file, content in commits[-1].items() if file not in gone}
            commits.append(old | new)
            oid = f"{len(commits) - 1:040x}"
            reply = {"commitOid": oid, "commitUrl": f"{self.server.url}/{name}/commit/{oid}"}
        self.answer(200, json.dumps(reply).encode(), Content_Type="application/json")

    def log_message(self, format: str, *args) -> None:
        pass


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
