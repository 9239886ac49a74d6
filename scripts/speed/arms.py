"""What is compared: ways to choose widths, and torch-pruning."""

from typing import Any

from torch import nn

import pbcompress as pb
from scripts.planner.networks import Inputs
from scripts.speed.peer import Peer

__all__ = ["ARMS", "DEFAULT", "EQUAL", "PEER", "PRICES", "WIDTHS", "Maker", "NotNeededError"]

DEFAULT, PEER, EQUAL = "default", "torch-pruning", "default at its size"
# name: arguments of WidthConfig
WIDTHS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "accurate": {"allocation": "accurate"},
    "fast": {"allocation": "fast"},
    "uniform": {"allocation": "uniform"},
    "unrounded": {"round_to": 1},
}
ARMS = (*WIDTHS, PEER, EQUAL)
# on trained networks: how far multiply-adds go from the most accurate widths to equal shares
PRICES = {"half way": 0.5, "equal shares": 1.0, "beyond": 1.25}
NEAR = 0.01  # of the default's parameters: what passes for the same size


class NotNeededError(Exception):
    """The other toolkit has the default's size already."""


class Maker:
    """Makes the arms of one network."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        self.model, self.inputs = model, inputs
        self._peer = Peer(model, inputs)
        self._plans: dict[str, pb.WidthPlan] = {}

    def network(self, arm: str, target: float) -> nn.Module:
        """Return the narrower network of an arm: its own failures are raised as they are."""
        if arm in WIDTHS:
            return pb.shrink(self.model, self._plan(target, **WIDTHS[arm]))
        wanted = self._plan(target).cost_after.params
        network = self._peer.network(wanted)
        if arm == PEER:
            return network
        params = pb.measure(network, self.inputs).params
        if abs(params - wanted) <= NEAR * wanted:
            raise NotNeededError(f"torch-pruning came within {NEAR:.0%} of the default's size")
        return pb.shrink(self.model, self._plan(params))

    def _plan(self, target: float, **choices: Any) -> pb.WidthPlan:
        key = f"{target} {choices}"
        if key not in self._plans:
            config = pb.WidthConfig(**choices)
            self._plans[key] = pb.plan_widths(self.model, self.inputs, target, config=config)
        return self._plans[key]
