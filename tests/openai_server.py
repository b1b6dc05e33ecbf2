"""A stand-in for a server with OpenAI's API: `python openai_server.py PORT`. It computes nothing.

Each token of a stream takes 10 ms. START_S delays its first answer; PAUSE_AT=N stops all streams for 2 s at the N-th
request; DIE_AT=N ends the process then; REFUSE_AT=N answers that one with status 500. SAYS is the one line of all
streams, LINE_BYTES its length without an end, and CHILD a file that gets the number of a process which ignores SIGTERM.
"""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN_S = 0.01
came: list[int] = []
lock, runs = threading.Lock(), threading.Event()
runs.set()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _head(self, status, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        self.end_headers()

    def do_GET(self):
        self._head(200, "application/json")
        self.wfile.write(json.dumps({"data": [{"id": "stand-in"}]}).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            came.append(1)
            number = len(came)
        if number == int(os.environ.get("DIE_AT", "-1")):
            os._exit(3)
        if number == int(os.environ.get("REFUSE_AT", "-1")):
            self._head(500, "text/plain")
            self.wfile.write(b"out of memory")
            return
        if number == int(os.environ.get("PAUSE_AT", "-1")):
            runs.clear()
            threading.Timer(2.0, runs.set).start()
        self._head(200, "text/event-stream")
        if "SAYS" in os.environ:
            self.wfile.write(os.environ["SAYS"].encode() + b"\n\n")
            return
        if "LINE_BYTES" in os.environ:
            self.wfile.write(b"data: " + b"x" * int(os.environ["LINE_BYTES"]))
            return
        for _ in range(body["max_tokens"]):
            time.sleep(TOKEN_S)
            runs.wait()
            self._event({"choices": [{"text": "x"}]})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": body["max_tokens"]}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event):
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()


if __name__ == "__main__":
    if "CHILD" in os.environ:
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        child.stdout.readline()
        Path(os.environ["CHILD"]).write_text(str(child.pid))
    time.sleep(float(os.environ.get("START_S", "0")))
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
