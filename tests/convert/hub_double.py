# SPDX-License-Identifier: Apache-2.0
"""A local stand-in for the Hugging Face Hub: the listing of a repository with hashes, files with
ranges, and faults on demand."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of a folder as ID. Faults: `cut` maps a file to how many bytes one answer
    gives, again and again or as often as `cuts` says; `wrong` names files whose bytes differ from
    their hash; `status` answers everything with an error."""

    def __init__(self, root, repo):
        self.root, self.repo = root, repo
        self.requests = []  # (path, first byte)
        self.tokens = []
        self.cut, self.cuts, self.wrong = {}, 10**9, set()
        self.status, self.code, self.ranges = None, None, True
        self.extra = []  # more entries of the listing
        self.gate = threading.Event()
        self.gate.set()  # cleared: file requests wait
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def listing(self):
        siblings = []
        for path in sorted(p for p in self.root.rglob("*") if p.is_file()):
            data, name = path.read_bytes(), path.relative_to(self.root).as_posix()
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entry = {"rfilename": name, "size": len(data), "blobId": git}
            if name.endswith(".safetensors"):
                sha = hashlib.sha256(data).hexdigest()
                entry["lfs"] = {"sha256": sha, "size": len(data), "pointerSize": 134}
            siblings.append(entry)
        return json.dumps({"sha": COMMIT, "siblings": siblings + self.extra}).encode()

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        self.tokens.append(request.headers.get("Authorization"))
        if self.status is not None:
            return self.send(request, self.status, b"{}")
        if path == f"/api/models/{self.repo}/revision/main":
            return self.send(request, 200, self.listing())
        start = f"/{self.repo}/resolve/{COMMIT}/"
        if not path.startswith(start):
            return self.send(request, 404, b"{}")
        self.gate.wait()
        name = path.removeprefix(start)
        data = (self.root / name).read_bytes()
        if name in self.wrong:
            data = bytes([data[0] ^ 1]) + data[1:]
        wanted = request.headers.get("Range")
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.requests.append((name, first))
        if not self.ranges:
            first = 0
        body, given = data[first:], len(data) - first
        if name in self.cut and self.cuts > 0 and given > self.cut[name]:
            self.cuts -= 1
            body = body[: self.cut[name]]
        self.send(request, 206 if first else 200, body, given)

    def send(self, request, status, body, length=None):
        request.send_response(status)
        request.send_header("Content-Length", str(len(body) if length is None else length))
        if self.code:
            request.send_header("X-Error-Code", self.code)
        request.end_headers()
        try:
            request.wfile.write(body)
        except OSError:
            pass
        if length is not None and len(body) < length:
            request.close_connection = True  # the rest never comes
            request.wfile.flush()
            request.connection.shutdown(2)
