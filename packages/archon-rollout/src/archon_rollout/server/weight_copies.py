"""Two copies of a server's weights: requests use the active one, and an update fills the other.

The second copy is built when the first tensor arrives, so a server without updates holds one. A commit exchanges the
two and moves no data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from archon_core.contracts.engine import TrainEngine
from archon_core.contracts.weight_transport import WeightReceiver, WeightTransportSpec
from archon_core.errors import ServerError
from archon_core.plugins import registry
from archon_core.receiving.updates import WeightUpdates
from archon_core.serving.manifest import WeightManifest
from archon_core.serving.update import UpdatePlan

NO_WEIGHTS = -1
"""Version of random weights, which must not generate."""

RECEIVE_SECONDS = 600.0
"""Limit of every wait of a receiver for the trainer."""


class EngineCopies:
    """Two engines of one model; implements ``contracts.weight_transport.WeightStore``.

    Args:
        active: the initialised engine to start with.
        build: builds an initialised engine of the same model, whose weights do not matter.
    """

    def __init__(self, active: TrainEngine, build: Callable[[], TrainEngine]) -> None:
        self.active = active
        self._build = build
        self._standby: TrainEngine | None = None
        # In which dtypes tensors arrived: those in use, and those of the update.
        self._dtypes_in_use: dict[str, torch.dtype] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    @property
    def reads_back(self) -> bool:
        """See ``WeightStore``. One rank of several holds parts of tensors only."""
        return self.active.data_ranks.everyone.size == 1

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Hugging Face name -> shape of every tensor of the model."""
        return {name: tuple(shape) for name, shape in self.active.received_weights.shapes.items()}

    def put(self, name: str, values: Tensor) -> None:
        """See ``WeightStore``."""
        self._filled().received_weights.put(name, values)
        self._dtypes[name] = values.dtype

    def keep(self, name: str) -> None:
        """See ``WeightStore``."""
        if name not in self._dtypes_in_use:
            raise ServerError(f"tensor {name!r}: found no published one in the weights in use; send all tensors")
        self._filled().received_weights.take_over(name, self.active.received_weights)
        self._dtypes[name] = self._dtypes_in_use[name]

    def stored(self, name: str) -> Tensor | None:
        """See ``WeightStore``."""
        if name not in self._dtypes:
            return None
        return self._filled().received_weights.whole(name, self._dtypes[name])

    def commit(self, version: int) -> None:
        """Exchange the copies."""
        self.active, self._standby = self._filled(), self.active
        self._dtypes_in_use, self._dtypes = self._dtypes, {}

    def drop(self) -> None:
        """See ``WeightStore``. The copy stays, for the next update."""
        self._dtypes = {}

    def build_copy(self) -> None:
        """Build the second copy, if it is missing. Collective over the ranks of the server."""
        if self._standby is None:
            self._standby = self._build()

    def _filled(self) -> TrainEngine:
        self.build_copy()
        assert self._standby is not None
        return self._standby


class OtherModelError(ServerError):
    """An update of another model: sending it again cannot succeed."""


class ServedWeights:
    """The weights of a server with their versions, and the updates that it receives.

    Args:
        copies: the two engines.
        version: of the active one; ``NO_WEIGHTS`` if its weights are random.
        incarnation: of the server.
    """

    def __init__(self, copies: EngineCopies, *, version: int, incarnation: str) -> None:
        self._copies = copies
        self.updates = WeightUpdates(copies, incarnation=incarnation, version=version, receiver_of=_receiver_of)

    @property
    def active(self) -> TrainEngine:
        """The engine with the weights in use."""
        return self._copies.active

    @property
    def version(self) -> int:
        """Version of the weights in use."""
        return self.updates.version

    @property
    def is_usable(self) -> bool:
        """Whether there are weights to generate with."""
        return self.version != NO_WEIGHTS

    def begin(self, plan: UpdatePlan) -> None:
        """Start an update.

        Raises:
            ServerError: as ``WeightUpdates.begin``.
            OtherModelError: the plan is for another model.
        """
        self._check_model(plan.manifest)
        self.updates.begin(plan)

    def build_copy(self) -> None:
        """See ``EngineCopies``."""
        self._copies.build_copy()

    def check_commit(self, version: int) -> None:
        """See ``WeightUpdates.check_commit``. An error in the thread that generates would end the server."""
        self.updates.check_commit(version)

    def _check_model(self, manifest: WeightManifest) -> None:
        ours = self._copies.shapes
        sent = {entry.name: entry.shape for entry in manifest.tensors}
        wrong = [name for name in {**ours, **sent} if ours.get(name) != sent.get(name)]
        if wrong:
            name = wrong[0]
            raise OtherModelError(
                f"update: found {name!r} with shape {sent.get(name)}; this server's model has {ours.get(name)}, and "
                f"{len(wrong)} such differences in all; publish the model that the server runs"
            )


def _receiver_of(transport: str) -> WeightReceiver:
    spec = registry().get(WeightTransportSpec, transport)
    if not spec.receiver:
        raise ServerError(f"update: transport {transport!r} has no receiving end for this kind of server")
    return spec.load_part("receiver")(timeout=RECEIVE_SECONDS)
