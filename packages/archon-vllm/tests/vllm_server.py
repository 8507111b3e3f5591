"""A server with vLLM's routes around archon-vllm's in-server part, and a model of a few tensors.

It refuses requests that the recorded contract does not know, and keeps sessions of weight updates as the worker of vLLM
does. A log-probability depends on every weight in use.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file
from vllm_contract import TABLE, problems_of

from archon_vllm.in_server.staging import StagedUpdates
from archon_vllm.in_server.worker import ArchonWorkerExtension

STEP_SECONDS = 0.002

METRICS = """# TYPE vllm:generation_tokens_total counter
vllm:prompt_tokens_total{{engine="0",model_name="default"}} 1.7e+01
vllm:generation_tokens_total{{engine="0",model_name="default"}} {}
vllm:generation_tokens_created{{engine="0",model_name="default"}} 1.79e+09
"""


def logprob_of(tensors):
    return -sum(float(t.double().abs().sum()) / t.numel() for t in tensors.values())


class Worker(ArchonWorkerExtension):
    """The session of vLLM's worker around the staged updates."""

    def __init__(self, tensors):
        self.tensors = dict(tensors)
        self.updates = StagedUpdates(self.load, incarnation=uuid.uuid4().hex)
        self.weight_transfer_engine, self._weight_update_active, self.fails = self, False, 0

    def load(self, tensors):
        for name, tensor in tensors:
            if self.fails:
                self.fails -= 1
                raise RuntimeError("the model has no such parameter")
            self.tensors[name] = tensor.clone()

    def start_weight_update(self):
        if self._weight_update_active:
            raise RuntimeError("start_weight_update called while a weight update is already active.")
        self._weight_update_active = True

    def update_weights(self, info):
        if not self._weight_update_active:
            raise RuntimeError("start_weight_update must be called before update_weights.")
        try:
            self.updates.act(**info)
        except BaseException:
            self._weight_update_active = False
            raise

    def finish_weight_update(self):
        if not self._weight_update_active:
            raise RuntimeError("finish_weight_update called without a matching start_weight_update.")
        self.updates.finish()
        self._weight_update_active = False

    def update_config(self, changes):
        assert changes == {"load_config": {"load_format": "auto"}}

    def reload_weights(self, weights_path):
        self.load(torch.load(f"{weights_path}/weights.pt").items())


class VllmServer:
    """The server; a context manager.

    Attributes:
        calls: target and body of every request, in order.
        running: ids of requests that have made a token and have not ended.
        late: path -> seconds before its next call is executed, in the order of calls.
    """

    def __init__(self, tensors, *, port=0, token=""):
        self.table = json.loads(TABLE.read_text(encoding="utf-8"))
        self.worker, self.token = Worker(tensors), token
        self.calls, self.running, self.aborted = [], set(), set()
        self.version, self.paused, self.resets = "default", False, True
        self.n_tokens = 0
        self.adapters = {}
        self.late, self.order = {}, threading.Lock()
        self.changed = threading.Condition()
        self.http = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self.http.daemon_threads = True
        self.address = f"127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()

    def targets(self):
        return [target for target, _ in self.calls]

    def answer(self, method, target, body):
        """Status and content; ``None`` for an empty body."""
        if target == "/metrics":  # mounted, so it is no route of the contract; counts tokens of the requests that run
            self.n_tokens += len(self.running)
            return 200, METRICS.format(self.n_tokens)
        self.calls.append((target, body))
        if found := problems_of(self.table, method, target, body):
            return 400, {"error": {"message": "; ".join(found)}}
        path, _, query = target.partition("?")
        action = getattr(self, "do" + path.replace("/", "_"))
        try:
            if path == "/inference/v1/generate":
                return 200, action(body or {}, query)
            with self.order:
                time.sleep(self.late.pop(path, 0))
                return 200, action(body or {}, query)
        except Exception as error:
            return 500, {"error": {"message": str(error), "type": "InternalServerError"}}

    def do_health(self, body, query):
        return None

    def do_get_world_size(self, body, query):
        return {"world_size": 1}

    def do_server_info(self, body, query):
        return {"vllm_config": {"instance_id": "abcde", "model_config": {"model": "/models/teacher"}}}

    def do_weight_info(self, body, query):
        return {"weight_version": self.version}

    def do_is_paused(self, body, query):
        return {"is_paused": self.paused}

    def do_pause(self, body, query):
        with self.changed:
            self.paused = True
            if query == "mode=abort":
                self.aborted |= self.running
            self.changed.notify_all()
        return {"status": "paused"}

    def do_resume(self, body, query):
        with self.changed:
            self.paused = False
            self.changed.notify_all()
        return {"status": "resumed"}

    def do_abort_requests(self, body, query):
        with self.changed:
            self.aborted |= set(body.get("request_ids") or self.running) & self.running
            self.changed.notify_all()
        return {"status": "aborted", "aborted": 1}

    def do_reset_prefix_cache(self, body, query):
        return {"success": self.resets}

    def do_init_weight_transfer_engine(self, body, query):
        self.worker.updates.begin(**body["init_info"])
        return {"message": "Weight transfer initialized"}

    def do_start_weight_update(self, body, query):
        self.worker.start_weight_update()
        return {"message": "Weight update started"}

    def do_update_weights(self, body, query):
        self.worker.update_weights(body["update_info"])
        return {"message": "Weights updated"}

    def do_finish_weight_update(self, body, query):
        self.worker.finish_weight_update()
        if body.get("weight_version") is not None:
            self.version = body["weight_version"]
        return {"message": "Weight update finished"}

    def do_update_weight_version(self, body, query):
        self.version = body["new_version"]
        return {"success": True, "new_version": self.version}

    def do_collective_rpc(self, body, query):
        result = getattr(self.worker, body["method"])(*body.get("args", ()), **body.get("kwargs", {}))
        return {"results": [result]}

    def do_v1_load_lora_adapter(self, body, query):
        if body["lora_name"] in self.adapters:
            raise RuntimeError(f"The lora adapter '{body['lora_name']}' has already been loaded.")
        folder = Path(body["lora_path"])
        assert json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"] == "LORA"
        self.adapters[body["lora_name"]] = load_file(folder / "adapter_model.safetensors")
        return f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    def do_v1_unload_lora_adapter(self, body, query):
        del self.adapters[body["lora_name"]]
        return f"Success: LoRA adapter '{body['lora_name']}' removed successfully."

    def next_token(self, prompt, ids, sampling, adapter):
        """A token and its log-probability."""
        return (sum(prompt) + len(ids)) % 97, logprob_of({**self.worker.tensors, **adapter})

    def do_inference_v1_generate(self, body, query):
        sampling, id = body["sampling_params"], "generate-tokens-" + body["request_id"]  # as vLLM does
        ids, versions, logprobs, reason = [], [], [], "length"
        adapter = {} if body.get("model") is None else self.adapters[body["model"]]  # for the whole request
        while len(ids) < sampling["max_tokens"]:
            time.sleep(STEP_SECONDS)
            with self.changed:
                self.changed.wait_for(lambda: not self.paused or id in self.aborted, timeout=10)
                if id in self.aborted:
                    reason = "abort"
                    break
                token, logprob = self.next_token(body["token_ids"], ids, sampling, adapter)
                ids.append(token)
                versions.append(self.version)
                logprobs.append(logprob)
                self.running.add(id)
            if ids[-1] in sampling.get("stop_token_ids", ()):
                reason = "stop"
                break
        self.running.discard(id)
        starts = [n for n in range(len(ids)) if n == 0 or versions[n] != versions[n - 1]]
        spans = [
            {"version": versions[start], "start": start, "end": end}
            for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
        ]
        content = [{"token_id": token, "logprob": value} for token, value in zip(ids, logprobs, strict=True)]
        choice = {"index": 0, "finish_reason": reason, "token_ids": ids, "weight_versions": spans}
        answer = {"request_id": id, "choices": [{**choice, "logprobs": {"content": content}}]}
        if sampling.get("prompt_logprobs") is not None:  # a more probable token stands beside the prompt's
            entries = [{str(t): {"logprob": -t / 8, "rank": 2}, "0": {"logprob": -0.1}} for t in body["token_ids"][1:]]
            answer["prompt_logprobs"] = [None, *entries]
        return answer

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.respond("GET", None)

            def do_POST(self):
                self.respond("POST", json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def respond(self, method, body):
                if server.token and self.headers["Authorization"] != f"Bearer {server.token}":
                    status, content = 401, {"error": "Unauthorized"}
                else:
                    status, content = server.answer(method, self.path, body)
                data = b"" if content is None else json.dumps(content).encode()
                data = content.encode() if isinstance(content, str) else data
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *arguments):
                pass

        return Handler
