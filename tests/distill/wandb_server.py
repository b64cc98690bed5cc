"""As much of wandb's server as a run talks to: it keeps the history of one run."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer(ThreadingHTTPServer):
    """`history` are the rows of a run that it was sent, as `wandb` numbers them.

    Args:
        dies: once metrics come it closes every connection instead of answering.
    """

    def __init__(self, *, dies: bool):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dies, self.is_dead = dies, False
        self.history: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, question: dict[str, Any]) -> dict[str, Any]:
        rows = question.get("files", {}).get("wandb-history.jsonl")
        if path.endswith("file_stream"):
            if rows:
                self.history[rows["offset"] :] = rows["content"]
            return {}
        bucket = {
            **dict.fromkeys(("id", "name", "displayName"), "run"),
            **dict.fromkeys(("config", "wandbConfig", "summaryMetrics"), "{}"),
            **dict.fromkeys(("eventsLineCount", "logLineCount"), 0),
            "historyLineCount": len(self.history),
            "historyTail": json.dumps(self.history[-1:]),
            "eventsTail": "[]",
            "project": {"name": "project", "entity": {"name": "entity"}},
        }
        model = {"id": "model", "bucket": bucket if self.history else None}
        return {
            "model": model,
            "upsertBucket": {"bucket": bucket, "inserted": not self.history},
            "createRunFiles": {"runID": "run", "uploadHeaders": [], "files": []},
        }


class _Handler(BaseHTTPRequestHandler):
    server: WandbServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.dies and b"images_seen" in body and self.path.endswith("file_stream"):
            self.server.is_dead = True
        if self.server.is_dead:
            return
        question = json.loads(body) if body.startswith(b"{") else {}
        answer = json.dumps({"data": self.server.answer(self.path, question)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(*, dies: bool = False) -> Iterator[WandbServer]:
    server = WandbServer(dies=dies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
