"""The best weights of a network while it grows, with the number of sets that they are for."""

from collections.abc import Mapping

from torch import Tensor, nn

from pbcompress.dendrites.growth import detach_dendrites_
from pbcompress.dendrites.layer import dendrite_layers, set_count
from pbcompress.training.snapshots import put_weights_, weights_of

__all__ = ["BestWeights"]


class BestWeights:
    """The best weights so far, and those that the current phase began with.

    Args:
        model: Network that grows; its present weights are the best to begin with.

    Attributes:
        sets: Dendrite sets that the best weights are for.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> best, before = BestWeights(net), net.weight.clone()
        >>> _ = nn.init.zeros_(net.weight)
        >>> best.put_back_()
        >>> bool((net.weight == before).all())
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._at_start: Mapping[str, Tensor] = {}
        self.keep()

    def keep(self) -> None:
        """Note the present weights as the best."""
        self._best: Mapping[str, Tensor] = weights_of(self._model)
        self.sets = set_count(self._model)

    def begin_phase(self) -> None:
        """Note the weights that a phase begins with."""
        self._at_start = weights_of(self._model)

    def put_back_(self) -> None:
        """Give the model its best weights, without the sets that came after them."""
        surplus = set_count(self._model) - self.sets
        if surplus:
            detach_dendrites_(self._model, surplus)
        for layer in dendrite_layers(self._model).values():
            layer.end_candidacy()
        put_weights_(self._model, self._best)

    def rewind_(self, *, to_best: bool) -> None:
        """Give the model the best weights of its current phase, or those that it began with.

        Args:
            to_best: The best weights are of this phase.
        """
        put_weights_(self._model, self._best if to_best else self._at_start)

    def state(self) -> dict[str, Tensor]:
        """Return tensors for `restore`."""
        parts = {"best": self._best, "started": self._at_start}
        return {f"{part}.{name}": t for part, held in parts.items() for name, t in held.items()}

    def restore(self, best: Mapping[str, Tensor], started: Mapping[str, Tensor], sets: int) -> None:
        """Take up `state`, by part, and the sets that the best weights are for."""
        self._best, self._at_start, self.sets = best, started, sets
