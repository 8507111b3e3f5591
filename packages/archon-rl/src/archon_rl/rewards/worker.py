"""A reward process: imports the reward function, then calls it for one completion after another.

It imports no torch, unless the reward does. It ends with the trainer: the kernel kills it (Linux), a thread notices the
trainer's end, and an idle process reads the end of its socket.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import time
from dataclasses import asdict
from typing import Any

from archon_core.errors import ArchonError
from archon_rl.parent import end_with
from archon_rl.rewards.calls import Outcome, RewardCall, make_call
from archon_rl.rewards.checking import NamedReward
from archon_rl.rewards.loading import load_reward
from archon_rl.rewards.messages import HELD_SECONDS, CallCounter, Receiver, send
from archon_rl.rewards.source import RewardSource
from archon_rl.rewards.source_fingerprint import function_fingerprint
from archon_rl.rewards.trainers_signals import leave_signals_to_trainer


def main(descriptor: int, counter: int, trainer: int, source: dict[str, str]) -> None:
    """Serve calls until the trainer closes its end of the socket.

    Args:
        descriptor: file descriptor of the socket.
        counter: file descriptor of the ``CallCounter``.
        trainer: process id of the trainer.
        source: fields of the ``RewardSource``.
    """
    end_with(trainer)
    leave_signals_to_trainer()
    for one in (descriptor, counter):
        os.set_inheritable(one, False)  # processes of the reward must not keep the socket open
    channel = socket.socket(fileno=descriptor)
    receiver = Receiver(channel)
    try:
        chosen = RewardSource(**source)
        reward = load_reward(chosen)
        _reply(channel, {"fingerprint": asdict(function_fingerprint(chosen))})
        begun = CallCounter(counter)
        n_begun = 0
        own = os.getpid()
        while (message := receiver.wait()) is not None:
            held: list[Any] = []
            sent = time.monotonic()
            for place, pickled in pickle.loads(message):
                if held and time.monotonic() - sent > HELD_SECONDS:
                    _reply(channel, {"first": n_begun - len(held), "outcomes": held})
                    held, sent = [], time.monotonic()
                n_begun += 1
                begun.write(n_begun)
                held.append(_outcome(reward, place, pickled).as_json())
                if os.getpid() != own:  # the function forked, and this is the child, which shares the socket
                    os._exit(1)
            _reply(channel, {"first": n_begun - len(held), "outcomes": held})
    except ArchonError as error:
        _reply(channel, {"error": type(error).__name__, "text": str(error)})
    except BrokenPipeError:  # the trainer no longer wants the answers
        return


def _outcome(reward: NamedReward, place: str, pickled: bytes) -> Outcome:
    try:
        call = RewardCall(*pickle.loads(pickled), place)
    except Exception as error:  # what unpickling raises depends on the object
        return Outcome(
            error=f"{place}: a reward process cannot read the record ({type(error).__name__}: {error}); leave out the "
            "field, or set rewards.processes=0",
            cause=f"a record that a process cannot read: {type(error).__name__}",
        )
    return make_call(reward, call)


def _reply(channel: socket.socket, reply: dict[str, Any]) -> None:
    send(channel, json.dumps(reply).encode())
