"""A small Hugging Face hub on loopback: one data set of parquet files, and faults on demand."""

import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    "Serves `files` (path -> bytes) of the data set `repo`; `fault(n)` says what befalls the n-th read of a file: 'cut', a status, or None"

    daemon_threads = True

    def __init__(self, repo, files, sha="1" * 40, fault=lambda n: None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repo, self.files, self.sha, self.fault = repo, {sha: files}, sha, fault
        self.reads, self.faults, self.lock = 0, [], threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        "A client that goes away is no news"

    @property
    def env(self) -> dict:
        "What makes a program take this hub for the real one"
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        "Silence"

    def answer(self, status, body, send=None, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])
            self.wfile.flush()

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def row(self, sha, path):
        files = self.server.files[sha]
        if path in files:
            return {"type": "file", "path": path, "size": len(files[path]), "oid": "2" * 40}
        return {"type": "directory", "path": path, "oid": "3" * 40}

    def do_HEAD(self):
        self.serve()

    def do_GET(self):
        self.serve()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            self.serve(json.loads(body)["paths"])
        except ValueError:
            self.serve([unquote(pair.partition("=")[2].replace("+", " ")) for pair in body.decode().split("&")])

    def serve(self, paths=()):
        hub, path = self.server, unquote(urlsplit(self.path).path)
        if path == f"/api/datasets/{hub.repo}":
            return self.json({"id": hub.repo, "sha": hub.sha, "siblings": []})
        revisions = "|".join(map(re.escape, ["main", *hub.files]))
        what = re.fullmatch(rf"(/api)?/datasets/{hub.repo}/(revision|tree|paths-info|resolve)/({revisions})(?:/(.*))?", path)
        sha = what and {"main": hub.sha}.get(what[3], what[3])
        if not sha:
            return self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
        files = hub.files[sha]
        below = {"/".join(p.split("/")[:i]) for p in files for i in range(1, p.count("/") + 1)} | set(files)
        if what[2] == "revision":
            return self.json({"id": hub.repo, "sha": sha, "siblings": []})
        if what[2] == "tree":
            return self.json([self.row(sha, p) for p in sorted(below) if p.startswith(f"{what[4]}/" if what[4] else "")])
        if what[2] == "paths-info":
            return self.json([self.row(sha, p) for p in paths if p in below])
        if what[4] not in files:
            return self.answer(404, b"", X_Error_Code="EntryNotFound")
        self.content(files[what[4]], sha)

    def content(self, data, sha):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        first = int(asked[1]) if asked else 0
        last = min(int(asked[2] or len(data)) if asked else len(data), len(data) - 1)
        fault = None
        if self.command == "GET":
            with self.server.lock:
                self.server.reads += 1
                fault = self.server.fault(self.server.reads)
                self.server.faults += [fault] if fault else []
        if isinstance(fault, int):
            return self.answer(fault, b"{}")
        body = data[first : last + 1]
        ranged = {"Content_Range": f"bytes {first}-{last}/{len(data)}"} if asked else {}
        send = len(body) // 2 if fault == "cut" else None
        self.answer(206 if asked else 200, body, send, X_Repo_Commit=sha, ETag='"' + "a" * 40 + '"', Accept_Ranges="bytes", **ranged)
        if fault == "cut":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
