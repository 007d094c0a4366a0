"""A fake Hugging Face hub: an HTTP server on this machine that keeps repositories in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    private: bool = True
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        wanted = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit[0] == wanted), None)

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, files))
        return oid


@dataclass
class Hub:
    """The state of the server.

    Attributes:
        url: of the server.
        tokens: for each token its account, organizations, and whether it has write access.
        repositories: by hub id.
        objects: uploaded weights by SHA-256.
        uploads: SHA-256 of each uploaded file, in order.
        refuse_uploads_after: number of uploads after which all further ones fail; None for no limit.
    """

    url: str = ""
    tokens: dict[str, tuple[str, list[str], bool]] = field(default_factory=dict)
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    refuse_uploads_after: int | None = None


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, body: Any = None, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def fail(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def account(self) -> tuple[str, list[str], bool] | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.state.tokens.get(given)

    def readable(self, name: str) -> Repository | None:
        """The repository; None if it does not exist or the account has no access."""
        found = self.state.repositories.get(name)
        account = self.account()
        owner = name.split("/", maxsplit=1)[0]
        sees = account is not None and owner in (account[0], *account[1])
        return found if found is not None and (sees or not found.private) else None

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            account = self.account()
            if account is None:
                return self.answer(401, {"error": "Invalid credentials"})
            return self.answer(200, {"type": "user", "name": account[0], "orgs": [{"name": one} for one in account[1]]})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repository = self.readable(match[1])
            if repository is None:
                return self.fail(404, "RepoNotFound", "Repository not found")
            commit = repository.at(match[2] or "main")
            if commit is None:
                return self.fail(404, "RevisionNotFound", "Revision not found")
            siblings = [{"rfilename": name} for name in sorted(commit[1])]
            return self.answer(
                200, {"id": match[1], "sha": commit[0], "private": repository.private, "siblings": siblings, "tags": []}
            )
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
            repository = self.readable(match[1])
            commit = repository.at(match[2]) if repository is not None else None
            if commit is None:
                return self.fail(404, "RevisionNotFound", "Revision not found")
            files = [self.entry(name, content) for name, content in sorted(commit[1].items())]
            return self.answer(200, files)
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self.readable(match[1])
            commit = repository.at(match[2]) if repository is not None else None
            if commit is None or match[3] not in commit[1]:
                return self.fail(404, "EntryNotFound", "Entry not found")
            content = commit[1][match[3]]
            etag = hashlib.sha256(content).hexdigest()
            return self.answer(
                200, content, ETag=f'"{etag}"', X_Repo_Commit=commit[0], Content_Length=str(len(content))
            )
        return self.fail(404, "EntryNotFound", f"nothing at {path}")

    @staticmethod
    def entry(name: str, content: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": name, "size": len(content)}
        found["oid"] = hashlib.sha1(content).hexdigest()
        if name.endswith(".safetensors"):
            oid = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
        return found

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        content, oid = self.body(), self.path.rpartition("/")[2]
        limit = self.state.refuse_uploads_after
        if limit is not None and len(self.state.uploads) >= limit:
            return self.answer(400, {"error": "The storage is full"})
        assert hashlib.sha256(content).hexdigest() == oid
        self.state.uploads.append(oid)
        self.state.objects[oid] = content
        return self.answer(200, b"")

    def do_POST(self) -> None:
        path, body, account = unquote(urlsplit(self.path).path), self.body(), self.account()
        if account is None:
            return self.answer(401, {"error": "Invalid credentials"})
        if not account[2]:
            return self.answer(403, {"error": "You don't have the rights"})
        if path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or account[0]}/{given['name']}"
            if name in self.state.repositories:
                return self.answer(409, {"error": "You already created this repository", "url": name})
            repository = Repository(private=given.get("visibility") == "private" or given.get("private") is True)
            repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            self.state.repositories[name] = repository
            return self.answer(200, {"url": f"{self.state.url}/{name}", "name": name, "id": name})
        if path == "/api/validate-yaml":  # the card's front matter
            return self.answer(200, {"errors": [], "warnings": []})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            return self.answer(
                200,
                {
                    "files": [
                        {
                            "path": one["path"],
                            "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                            "shouldIgnore": False,
                        }
                        for one in files
                    ]
                },
            )
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            objects = []
            for one in json.loads(body)["objects"]:
                actions = {"actions": {"upload": {"href": f"{self.state.url}/lfs/{one['oid']}"}}}
                objects.append({**one, **({} if one["oid"] in self.state.objects else actions)})
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            repository = self.state.repositories[match[1]]
            files = dict(repository.commits[-1][1])
            for line in body.splitlines():
                change = json.loads(line)
                value = change["value"]
                if change["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif change["key"] == "lfsFile":
                    files[value["path"]] = self.state.objects[value["oid"]]
                elif change["key"] == "deletedFile":
                    files.pop(value["path"])
            oid = repository.commit(files)
            return self.answer(200, {"commitUrl": f"{self.state.url}/{match[1]}/commit/{oid}", "commitOid": oid})
        return self.fail(404, "EntryNotFound", f"nothing at {path}")
