"""Workflows: another number of trajectories per record, several kinds of failures, and own rewards."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from archon_core.contracts.rollout import GenerationRequest
from archon_core.contracts.workflows import Trajectory


class Uneven:
    """One completion per sample, or two for records with an odd answer."""

    def __init__(self, config, parts):
        self.parts = parts

    async def run(self, client, record, seeds):
        number = int(record["answer"])
        self.check(number)
        await asyncio.sleep(0.001 * (number % 3))  # a tool that takes its time
        prompt, found = self.parts.encode_prompt(record), []
        for _ in range(1 + number % 2):
            completions = await client.generate(GenerationRequest(prompt, self.parts.options, tuple(seeds)))
            rewards = await self.parts.rewards(record, [one.token_ids for one in completions])
            for completion, reward in zip(completions, rewards, strict=True):
                one = Trajectory.from_completion(prompt, completion)
                found.append(replace(one, reward=reward, metadata={"odd": number % 2 == 1, "text": "odd"}))
        return found

    def check(self, number):
        pass


class LeavesOut(Uneven):
    async def run(self, client, record, seeds):
        return None if int(record["answer"]) % 2 else await super().run(client, record, seeds)


class RaisesSometimes(Uneven):
    def check(self, number):
        if number == 4:
            raise ValueError("odd")


class RaisesAlways(Uneven):
    def check(self, number):
        raise ValueError("odd")


class GivesRewards:
    """One completion per sample, whose length is its reward."""

    def __init__(self, config, parts):
        assert parts.rewards is None
        self.parts = parts

    async def run(self, client, record, seeds):
        prompt = self.parts.encode_prompt(record)
        completions = await client.generate(GenerationRequest(prompt, self.parts.options, tuple(seeds)))
        found = [Trajectory.from_completion(prompt, one) for one in completions]
        return [replace(one, reward=one.n_sampled, metadata={"length": one.n_sampled}) for one in found]


class ReturnsData(Uneven):
    async def run(self, client, record, seeds):
        return {"trajectories": await super().run(client, record, seeds)}


def uneven(config, parts):
    return Uneven(config, parts)


def leaves_out(config, parts):
    return LeavesOut(config, parts)


def raises_sometimes(config, parts):
    return RaisesSometimes(config, parts)


def raises_always(config, parts):
    return RaisesAlways(config, parts)


def gives_rewards(config, parts):
    return GivesRewards(config, parts)


def returns_data(config, parts):
    return ReturnsData(config, parts)
