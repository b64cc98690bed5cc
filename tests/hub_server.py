"""A hub for tests: what huggingface_hub asks of huggingface.co, answered on this machine.

It holds models as commits of files, large files (safetensors) as those of Git LFS, which come from
another address, and takes commits. Every request is noted. It knows no Xet: clients fetch and push
by HTTP (HF_HUB_DISABLE_XET).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api

TOKEN = "hf_writer"  # of a user who may write to what is under USER
USER = "user"
LFS = ".safetensors"
# Seconds that a client waits for an answer, on a busy machine too.
TIMEOUTS, TIMEOUT = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), 120

Files = dict[str, bytes]  # path -> contents


@dataclass
class Model:
    """A model's history."""

    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit
    private: bool = False
    gated: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        """A new commit of these files on a branch; returns its hash."""
        sha = hashlib.sha1(repr((branch, sorted(files.items()), len(self.commits))).encode())
        self.refs[branch] = sha.hexdigest()
        self.commits[sha.hexdigest()] = files
        return sha.hexdigest()

    def at(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit."""
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


class Hub(ThreadingHTTPServer):
    """The server, its models, and what was asked of it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.models: dict[str, Model] = {}
        self.blobs: dict[str, bytes] = {}  # of Git LFS, by SHA-256
        self.asked: list[str] = []  # "METHOD path"
        self.truncated: set[str] = set()  # paths of which only half is sent
        self.broken = False  # whether all that is answered is a fault of the server

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def model(self, name: str, files: Files, **what: Any) -> Model:
        """Puts a model there, with one commit on main."""
        self.models[name] = Model(**what)
        self.models[name].commit(files)
        return self.models[name]

    def fetched(self, file: str) -> int:
        """How often the contents of a file were sent."""
        return sum(line.startswith("GET") and line.endswith(f"/{file}") for line in self.asked)


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that runs meanwhile."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def files_of(folder: Path) -> Files:
    """A folder as files of a model."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def use_hub(address: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes huggingface_hub, which has read its environment by now, ask this address."""
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(hf_api.api, "endpoint", address)  # of functions that belong to no HfApi
    files = address + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    for timeout in TIMEOUTS:
        patch.setattr(constants, timeout, TIMEOUT)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    patch.delenv("HF_TOKEN", raising=False)


def environment(address: str, home: Path) -> dict[str, str]:
    """The same for a program that is started."""
    place = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return place | dict.fromkeys(TIMEOUTS, str(TIMEOUT))


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing: `Hub.asked` has it."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        if self.server.broken:
            return self._send(500, {"error": "broken"})
        for pattern, answer in _ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                return getattr(self, answer)(**match.groupdict())
        return self._send(404, {"error": f"no such address: {path}"})

    # --- what is read ---------------------------------------------------------------------

    def _info(self, repo: str, revision: str | None = None) -> None:
        found = self._found(repo, revision or "main")
        if found is not None:
            model, sha = found
            siblings = [{"rfilename": path} for path in model.commits[sha]]
            private = model.private
            self._send(200, {"id": repo, "sha": sha, "private": private, "siblings": siblings})

    def _tree(self, repo: str, revision: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return
        entries = []
        for path, data in found[0].commits[found[1]].items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
            if path.endswith(LFS):
                lfs = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
                entry["lfs"] = lfs
            entries.append(entry)
        self._send(200, entries)

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        found = self._found(repo, revision)
        if found is None:
            return None
        model, sha = found
        if model.gated and not self._user():
            return self._refuse(401, "GatedRepo", f"Access to model {repo} is restricted.")
        data = model.commits[sha].get(file)
        if data is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{_git_oid(data)}"'}
        if file.endswith(LFS):
            self.server.blobs[_sha256(data)] = data
            port = self.server.server_port
            headers |= {
                "X-Linked-Etag": f'"{_sha256(data)}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"http://localhost:{port}/cdn/{_sha256(data)}/{file}",  # another host
            }
            return self._send(302, b"", headers)
        return self._send_file(file, data, headers)

    def _cdn(self, oid: str, file: str) -> None:
        self._send_file(file, self.server.blobs[oid], {})

    def _send_file(self, file: str, data: bytes, headers: dict[str, str]) -> None:
        if self.command == "GET" and file in self.server.truncated:
            data = data[: len(data) // 2]
        self._send(200, data, headers)

    # --- what is written ------------------------------------------------------------------

    def _create(self) -> None:
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if self._writes(repo):
            known = repo in self.server.models
            if not known:
                private = asked.get("visibility") == "private" or bool(asked.get("private"))
                self.server.model(repo, {".gitattributes": b""}, private=private)
            url = f"{self.server.address}/{repo}"
            self._send(409 if known else 200, {"url": url, "name": repo})

    def _branch(self, repo: str, branch: str) -> None:
        if self._writes(repo):
            model = self.server.models[repo]
            known = branch in model.refs
            model.refs.setdefault(branch, model.refs["main"])
            self._send(409 if known else 200, {})

    def _validate(self) -> None:
        text = json.loads(self.body)["content"]
        if not text.startswith("---\n"):
            return self._send(400, {"errors": [{"message": "no metadata"}], "warnings": []})
        return self._send(200, {"errors": [], "warnings": []})

    def _preupload(self, repo: str, revision: str) -> None:
        if self._writes(repo):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(self.body)["files"]
            ]
            self._send(200, {"files": files})

    def _lfs_batch(self, repo: str) -> None:
        if self._writes(repo):
            objects = [
                {
                    **asked,
                    "actions": {"upload": {"href": f"{self.server.address}/lfs/{asked['oid']}"}},
                }
                for asked in json.loads(self.body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        assert _sha256(self.body) == oid
        self.server.blobs[oid] = self.body
        self._send(200, b"")

    def _commit(self, repo: str, revision: str) -> None:
        if not self._writes(repo):
            return
        model = self.server.models[repo]
        files = dict(model.commits[model.refs[revision]])
        for line in self.body.splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        sha = model.commit(files, revision)
        url = f"{self.server.address}/{repo}/commit/{sha}"
        self._send(200, {"commitUrl": url, "commitOid": sha, "success": True})

    # --- who asks, and how it is answered -------------------------------------------------

    def _user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return {TOKEN: USER, "hf_reader": "reader"}.get(token)

    def _writes(self, repo: str) -> bool:
        """Whether the user may write there; answers, if not."""
        user = self._user()
        if user is None:
            self._send(401, {"error": "Invalid username or password."})
        elif user != repo.split("/")[0]:
            self._send(403, {"error": "You have no right to write"})
        return user == repo.split("/")[0]

    def _found(self, repo: str, revision: str) -> tuple[Model, str] | None:
        """A model and a commit; answers, if there is none."""
        model = self.server.models.get(repo)
        if model is None or (model.private and self._user() != repo.split("/")[0]):
            if self._user():
                self._refuse(404, "RepoNotFound", "Repository not found")
            else:  # as huggingface.co has it
                self._send(401, {"error": "Invalid username or password."})
            return None
        sha = model.at(revision)
        if sha is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return model, sha

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._send(status, {"error": message}, headers)

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    (rf"GET /api/models/{_REPO}", "_info"),
    (rf"GET /api/models/{_REPO}/revision/(?P<revision>.+)", "_info"),
    (rf"GET /api/models/{_REPO}/tree/(?P<revision>[^/]+)/?", "_tree"),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", "_resolve"),
    (r"(?:GET|HEAD) /cdn/(?P<oid>[0-9a-f]+)/(?P<file>.+)", "_cdn"),
    (r"POST /api/repos/create", "_create"),
    (r"POST /api/validate-yaml", "_validate"),
    (rf"POST /api/models/{_REPO}/branch/(?P<branch>.+)", "_branch"),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", "_preupload"),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", "_lfs_batch"),
    (r"PUT /lfs/(?P<oid>[0-9a-f]+)", "_lfs_put"),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)", "_commit"),
]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
