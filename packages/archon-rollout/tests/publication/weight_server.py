"""A server without a model, for tests of publication: receives weights over HTTP, and lies when a test tells it to.

Run as a script, it serves in a process of its own; ``HttpDriver`` calls it. Its "log-probabilities" depend on every
weight in use, so a canary sees whether they are right.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from archon_core.contracts.rollout import Completion
from archon_core.errors import ServerError, UncertainCallError
from archon_core.receiving.memory_store import MemoryStore
from archon_core.receiving.updates import WeightUpdates
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.record import ServerCapabilities, ServerRecord, ServerState
from archon_core.serving.update import BucketNotice, Receipt, UpdatePlan
from archon_rollout.plugin import archon_weight_transports


def logprobs_of(tensors, n_tokens):
    """Numbers that depend on every tensor and its name."""
    total = sum(
        (k + 1) * float(tensors[name].double().abs().sum()) / (1 + tensors[name].numel())
        for k, name in enumerate(sorted(tensors))
    )
    return [-total - 0.01 * token for token in range(n_tokens)]


class LyingStore(MemoryStore):
    """A store that spoils what it receives, as its fault says."""

    def __init__(self, faults):
        super().__init__()
        self.faults = faults

    def put(self, name, values):
        if self.faults.get("drop") == name:
            return
        if self.faults.get("sleep_in") == name:
            time.sleep(self.faults.pop("seconds"))
        for fault, signal_number in (("die_in", signal.SIGKILL), ("stop_in", signal.SIGSTOP)):
            if self.faults.get(fault) == name:
                del self.faults[fault]
                os.kill(os.getpid(), signal_number)
        super().put(name, values)
        if self.faults.get("flip") == name:
            self._spare[name].view(torch.uint8).view(-1)[3] ^= 1
        first, second = self.faults.get("swap", ("", ""))
        if name == second:
            self._spare[first], self._spare[second] = self._spare[second], self._spare[first]


class Server:
    def __init__(self, timeout):
        self.incarnation = str(uuid.uuid4())
        self.faults = {}
        self.log = []
        self.paused = False
        self.store = LyingStore(self.faults)
        receivers = {spec.name: spec.load_part("receiver") for spec in archon_weight_transports()}
        self.updates = WeightUpdates(
            self.store,
            incarnation=self.incarnation,
            version=0,
            receiver_of=lambda name: receivers[name](timeout=timeout),
        )

    def answer(self, verb, data):
        self.log.append(verb)
        if self.faults.get("delay", ("", 0))[0] == verb:
            time.sleep(self.faults.pop("delay")[1])
        return getattr(self, verb)(data)

    def fault(self, data):
        self.faults.update(data)

    def begin(self, data):
        self.updates.begin(UpdatePlan.from_data(data))

    def receive(self, data):
        if self.faults.get("die_at") == data["index"]:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.faults.get("stop_at") == data["index"]:
            del self.faults["stop_at"]
            os.kill(os.getpid(), signal.SIGSTOP)
        return self.updates.receive(BucketNotice.from_data(data)).as_data()

    def verify(self, data):
        if self.faults.get("honest") is False:  # repeats what the trainer sent, instead of looking
            manifest = WeightManifest.from_data(data)
            self.updates._prepared = manifest.version
            return Receipt(
                self.incarnation, manifest.version, {entry.name: entry.checksum for entry in manifest.tensors}
            ).as_data()
        return self.updates.verify(WeightManifest.from_data(data)).as_data()

    def commit(self, data):
        if self.faults.get("keep_old"):
            if self.faults["keep_old"] == "and say new":
                self.updates._version = data
            return
        self.updates.commit(data)
        self.updates._version += self.faults.get("label_off_by", 0)

    def abort(self, data):
        self.updates.abort(data)

    def pause(self, data):
        self.paused = True

    def resume(self, data):
        self.paused = False

    def state(self, data):
        updates = self.updates
        return ServerState(self.incarnation, updates.version, self.paused, updates.prepared, updates.updating).as_data()

    def generate(self, data):
        version = self.updates.version + self.faults.get("token_off_by", 0)
        n = data["n"]
        ids = [*range(n - 1), self.faults.get("last_token", n - 1)]
        return {"ids": ids, "logprobs": logprobs_of(self.store.tensors, n), "versions": [version] * n}

    def weights(self, data):
        torch.save(dict(self.store.tensors), data)

    def history(self, data):
        return self.log


def serve(timeout):
    server = Server(timeout)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, answer = 200, server.answer(self.path[1:], data)
            except ServerError as error:
                status, answer = 400, str(error)
                server.log.append(answer)
            content = json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                pass  # the client gave up

        def log_message(self, *arguments):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(json.dumps({"address": f"127.0.0.1:{listener.server_port}", "incarnation": server.incarnation}), flush=True)
    # Ends with the test, however that ends.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    listener.serve_forever()


class HttpDriver:
    """Calls the server; implements ``contracts.serving.ServerDriver`` as far as publication uses it."""

    capabilities = ServerCapabilities(("disk", "shm", "distributed"), ("keep",), staged=True, checksums=True)

    def call(self, server, verb, data=None, *, timeout=20.0):
        connection = http.client.HTTPConnection(server.address, timeout=timeout)
        try:
            connection.request("POST", f"/{verb}", json.dumps(data))
            response = connection.getresponse()
            answer = json.loads(response.read())
        except TimeoutError as error:
            raise UncertainCallError(f"{verb}: no answer within {timeout} s") from error
        except OSError as error:
            raise ServerError(f"{verb}: {error}") from error
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(answer)
        return answer

    async def generate(self, server, request, *, request_id, timeout):
        n = request.config.max_new_tokens
        answer = self.call(server, "generate", {"n": n}, timeout=timeout)
        return [Completion(tuple(answer["ids"]), tuple(answer["logprobs"]), tuple(answer["versions"]), "length")]

    def pause(self, server, mode, *, timeout):
        self.call(server, "pause", timeout=timeout)

    def resume(self, server, *, timeout):
        self.call(server, "resume", timeout=timeout)

    def state(self, server, *, timeout):
        return ServerState.from_data(self.call(server, "state", timeout=timeout))

    def begin_update(self, server, plan, *, timeout):
        self.call(server, "begin", plan.as_data(), timeout=timeout)

    def receive_bucket(self, server, notice, *, timeout):
        return Receipt.from_data(self.call(server, "receive", notice.as_data(), timeout=timeout))

    def verify_update(self, server, manifest, *, timeout):
        return Receipt.from_data(self.call(server, "verify", manifest.as_data(), timeout=timeout))

    def commit_update(self, server, version, *, timeout):
        self.call(server, "commit", version, timeout=timeout)

    def abort_update(self, server, version, *, timeout):
        self.call(server, "abort", version, timeout=timeout)


def record_of(line):
    return ServerRecord(kind="test", **json.loads(line))


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(float(sys.argv[1]))
