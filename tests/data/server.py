"""A local http server that serves a folder, and misbehaves on request."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """Files of a folder at `url`; `faults` are lists of what to do, by file name, in order:
    an HTTP status to answer, "cut" to end the body half-way, or "hang" to send half of it and
    then nothing. The last one goes on for ever; None serves the file."""

    def __init__(self, folder: Path, port: int):
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        self.faults: dict[str, list[int | str | None]] = {}
        self.requests: Counter[str] = Counter()
        self.over = threading.Event()

    def next_fault(self, name: str) -> int | str | None:
        self.requests[name] += 1
        faults = self.faults.get(name, [None])
        return faults.pop(0) if len(faults) > 1 else faults[0]


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """Serves a folder until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            fault = server.next_fault(name)
            if isinstance(fault, int):
                self.send_error(fault)
                return
            body = (folder / name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault else body)
            self.wfile.flush()
            if fault == "hang":
                server.over.wait()

        def log_message(self, *arguments: object) -> None:
            """Nothing: the tests look at `requests`."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(folder, listener.server_port)
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        listener.shutdown()
        thread.join()
        listener.server_close()
