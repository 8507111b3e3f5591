"""A server with SGLang's routes and no model, which makes one token per step.

It refuses requests that the recorded contract does not know, and pauses, aborts and changes versions as SGLang does.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sglang_contract import TABLE, problems_of

STEP_SECONDS = 0.002


class SglangServer:
    """The server; a context manager.

    Attributes:
        calls: path and body of every request, in order.
        refuses: path -> message of a refusal.
        running: ids of requests that have made a token and have not ended.
    """

    def __init__(self, *, model_path="/model", ready=True, token=""):
        self.table = json.loads(TABLE.read_text(encoding="utf-8"))
        self.calls, self.refuses, self.running, self.aborted = [], {}, set(), set()
        self.version, self.paused, self.model_path, self.is_ready = "default", False, model_path, ready
        self.adapters = {}
        self.name, self.token, self.spans = f"archon-{uuid.uuid4().hex}", token, True
        self.changed = threading.Condition()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.http.daemon_threads = True
        self.address = f"127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()

    def paths(self):
        return [path for path, _ in self.calls]

    def answer(self, method, path, body):
        """Status and content; ``None`` for an empty body, as SGLang answers some routes."""
        self.calls.append((path, body))
        if found := problems_of(self.table, method, path, body):
            return 422, {"error": {"message": "; ".join(found)}}
        if path in self.refuses:
            return 400, {"success": False, "message": self.refuses[path]}
        return getattr(self, "do" + path.replace("/", "_"))(body or {})

    def do_ready(self, body):
        return 200 if self.is_ready and not self.paused else 503, None

    def do_model_info(self, body):
        return 200, {"model_path": self.model_path, "weight_version": self.version}

    def do_server_info(self, body):
        return 200, {"served_model_name": self.name, "startup_time": {"load_weight": 1.5}, "tp_size": 2, "port": 1}

    def do_pause_generation(self, body):
        with self.changed:
            self.paused = True
            if body.get("mode", "abort") == "abort":
                self.aborted |= self.running
                self.changed.notify_all()
        return 200, {"message": "Generation paused successfully.", "status": "ok"}

    def do_continue_generation(self, body):
        with self.changed:
            self.paused = False
            self.changed.notify_all()
        return 200, {"message": "Generation continued successfully.", "status": "ok"}

    def do_abort_request(self, body):
        with self.changed:
            self.aborted |= self.running if body.get("abort_all") else {body["rid"]} & self.running
            self.changed.notify_all()
        return 200, None

    def do_update_weight_version(self, body):
        with self.changed:
            if body.get("abort_all_requests", True):
                self.aborted |= self.running
            self.version = body["new_version"]
        return 200, {"success": True, "message": "updated", "new_version": self.version}

    def do_update_weights_from_disk(self, body):
        with self.changed:
            if body.get("abort_all_requests", False):
                self.aborted |= self.running
            self.version, self.model_path = body["weight_version"], body["model_path"]
        return 200, {"success": True, "message": "Succeeded to update model weights.", "num_paused_requests": 0}

    def do_load_lora_adapter(self, body):
        if body["lora_name"] in self.adapters:
            return 400, {"success": False, "error_message": f"LoRA with name {body['lora_name']} already exists"}
        self.adapters[body["lora_name"]] = body["lora_path"]
        return 200, {"success": True, "error_message": "", "loaded_adapters": self.adapters}

    def do_unload_lora_adapter(self, body):
        del self.adapters[body["lora_name"]]
        return 200, {"success": True, "error_message": "", "loaded_adapters": self.adapters}

    def do_generate(self, body):
        assert body.get("lora_path") is None or body["lora_path"] in self.adapters
        sampling, id = body["sampling_params"], body["rid"]
        ids, versions, reason = [], [], {"type": "length", "length": sampling["max_new_tokens"]}
        while len(ids) < sampling["max_new_tokens"]:
            time.sleep(STEP_SECONDS)
            with self.changed:
                self.changed.wait_for(lambda: not self.paused or id in self.aborted, timeout=10)
                if id in self.aborted:
                    reason = {"type": "abort", "message": "Abort"}
                    break
                ids.append((sum(body["input_ids"]) + len(ids)) % 97)
                versions.append(self.version)
                self.running.add(id)
            if ids[-1] in sampling.get("stop_token_ids", ()):
                reason = {"type": "stop", "matched": ids[-1]}
                break
        self.running.discard(id)
        info = {"id": id, "finish_reason": reason, "weight_version": self.version}
        info["output_token_logprobs"] = [[-0.5 - token / 100, token, None] for token in ids]
        if self.spans:
            starts = [n for n in range(len(ids)) if n == 0 or versions[n] != versions[n - 1]] or [0]
            ends = [*starts[1:], len(ids)]
            names = versions or [self.version]
            info["weight_versions"] = [
                {"version": names[start], "start": start, "end": end} for start, end in zip(starts, ends, strict=True)
            ]
        if "logprob_start_len" in body:
            values = [None, *(-token / 8 for token in body["input_ids"][1:])]
            info["input_token_logprobs"] = [[v, t, None] for v, t in zip(values, body["input_ids"], strict=True)]
        if body.get("return_routed_experts"):
            n = (len(body["input_ids"]) + len(ids) - 1) * 2 * 2  # two layers, two experts per token
            info["routed_experts"] = base64.b64encode(struct.pack(f"<{n}i", *(k % 8 for k in range(n)))).decode()
        return 200, {"text": "", "output_ids": ids, "meta_info": info}

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.respond("GET", None)

            def do_POST(self):
                content = self.rfile.read(int(self.headers["Content-Length"]))
                self.respond("POST", json.loads(content))

            def respond(self, method, body):
                if server.token and self.headers["Authorization"] != f"Bearer {server.token}":
                    status, content = 401, {"error": "Unauthorized"}
                else:
                    status, content = server.answer(method, self.path, body)
                data = b"" if content is None else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        return Handler
