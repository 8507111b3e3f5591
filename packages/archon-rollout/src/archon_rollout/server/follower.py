"""A rank of a server other than the first: generates in step with it, and receives its part of new weights.

The first rank runs it as ``python -m archon_rollout.server.follower PORT OPTIONS``. Calls of an update arrive as lines
of JSON on the standard input, and are answered on the standard output.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from typing import Any, TextIO

import torch.distributed as dist

from archon_core.errors import USER_ERROR, ArchonError
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import BucketNotice, UpdatePlan
from archon_rollout.server.commands import Stop
from archon_rollout.server.environment import PARENT
from archon_rollout.server.model import ServedModel, parse_server_layout
from archon_rollout.server.parent import end_with
from archon_rollout.server.serving_loop import ServingLoop
from archon_rollout.server.weight_copies import EngineCopies, ServedWeights
from archon_rollout.server.world import LOCALHOST, join


def main(port: int, options: dict[str, Any]) -> None:
    """Follow the first rank until it stops."""
    end_with(os.environ.get(PARENT))
    # Whatever else prints must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ranks = join(dist.TCPStore(LOCALHOST, port, is_master=False), rank, size)
    model = ServedModel.find(options["model"], dtype=options["dtype"], run_as=options["run_as"])
    layout = parse_server_layout(options["layout"])
    copies = EngineCopies(model.load(layout), lambda: model.load_empty(layout))
    incarnation = ranks.broadcast("")
    weights = ServedWeights(copies, version=options["version"], incarnation=incarnation)
    serving = ServingLoop(weights, max_rows=options["max_batch_size"])
    arguments = (weights, sys.stdin, answers)
    threading.Thread(target=answer_updates, args=arguments, name="archon-update", daemon=True).start()
    while True:
        commands = ranks.broadcast([])
        if any(isinstance(command, Stop) for command in commands):
            break
        serving.run(commands)
    serving.close()
    dist.destroy_process_group()


def answer_updates(weights: ServedWeights, calls: TextIO, answers: TextIO) -> None:
    """Execute the calls of updates, one after the other, until the first rank ends."""
    for line in calls:
        verb, data = json.loads(line)
        try:
            call_update(weights, verb, data)
            problem = ""
        except Exception as error:  # the first rank answers its caller with it
            problem = str(error) or type(error).__name__
        print(json.dumps(problem), file=answers, flush=True)


def call_update(weights: ServedWeights, verb: str, data: Any) -> Any:
    """Execute one call of an update, with its argument as JSON."""
    match verb:
        case "begin":
            return weights.begin(UpdatePlan.from_data(data))
        case "receive":
            return weights.updates.receive(BucketNotice.from_data(data))
        case "verify":
            return weights.updates.verify(WeightManifest.from_data(data))
        case "abort":
            return weights.updates.abort(data)
    raise AssertionError(verb)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), json.loads(sys.argv[2]))
        code = 0
    except ArchonError:
        code = USER_ERROR  # the first rank raises it, too
    except Exception:
        traceback.print_exc()
        code = 1
    sys.stderr.flush()
    # Without the interpreter's shutdown, which could wait for threads in collectives.
    os._exit(code)
