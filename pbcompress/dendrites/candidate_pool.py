"""What a dendrite phase trains in a layer: the candidates for its newest set, and their scores."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from pbcompress.config.dendrites import DendriteConfig, Shared, Tied
from pbcompress.dendrites.correlation import CorrelationProbe, process_count
from pbcompress.dendrites.positions import Window
from pbcompress.dendrites.signals import activate, add_links

__all__ = ["Candidate", "CandidatePool"]


class Candidate(NamedTuple):
    """Weights that compete for a dendrite set.

    Attributes:
        branch: Input map D.
        links: V, the weights from the earlier sets, shape (earlier sets, nodes).
    """

    branch: nn.Module
    links: nn.Parameter


class CandidatePool(nn.Module):
    """The candidates for the newest set of a layer, while a dendrite phase lasts.

    The first candidate is the set itself, which the layer holds; the pool holds its rivals. They
    read what the layer reads and the error that passes back through its output, and add nothing to
    the output. When the phase ends, each node takes the best of its candidates.

    Args:
        rivals: The candidates beside the newest set.
        config: Form, activation, and how many positions a step looks at.
        leaf: Its gradient sums the scores of all candidates; see `correlation.score_leaf`.
        dims: Spatial axes of the layer.
        normalized: Whether candidates have a BatchNorm.

    Attributes:
        branches: Input maps of the rivals.
        links: Their V.
        loss_scale: What the loss is multiplied by before its backward pass.
    """

    def __init__(
        self,
        rivals: Sequence[Candidate],
        config: DendriteConfig,
        leaf: Tensor,
        *,
        dims: int,
        normalized: bool,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(rival.branch for rival in rivals)
        self.links = nn.ParameterList(rival.links for rival in rivals)
        self.config, self.dims, self.normalized = config, dims, normalized
        self.leaf, self.loss_scale = leaf, 1.0

    @property
    def rivals(self) -> list[Candidate]:
        """The candidates beside the newest set."""
        pairs = zip(self.branches, self.links, strict=True)
        return [Candidate(branch, links) for branch, links in pairs]

    def restart(self, scores: Tensor | None = None) -> None:
        """Forget the scores, or take up the sums of a former run."""
        self.leaf.grad, self.loss_scale = scores, 1.0

    def summed_scores(self) -> Tensor | None:
        """Return the sums over the phase, with the rows of the leaf; a copy."""
        return None if self.leaf.grad is None else self.leaf.grad.clone()

    def window(self, y: Tensor, axes: tuple[int, ...]) -> Window:
        """Return where in an output candidates look in one step; see `probe`."""
        sizes = [len(y) * process_count(), *(y.shape[axis] for axis in axes)]
        return Window.drawn(sizes, axes, self.config.scored_rule.samples)

    def probe(
        self,
        y: Tensor,
        read: Tensor,
        earlier: Sequence[Tensor | None],
        candidates: Sequence[Candidate],
        axes: tuple[int, ...],
    ) -> Tensor:
        """Return ``y``, whose error will train the candidates.

        Args:
            y: Output of the layer.
            read: What its dendrites read.
            earlier: Activations of the earlier sets in all slots; None: the set has no node.
            candidates: The newest set and its rivals.
            axes: Of positions in the output; see `positions.position_axes`.
        """
        axis = -1 - self.dims
        if self.normalized and y.numel() == y.shape[axis] and process_count() == 1:
            return y  # one sample has no correlation, and a BatchNorm refuses it
        window = self.window(y, axes)
        seen = [None if a is None else window.take(a.detach()) for a in earlier]
        activations = [
            activate(
                add_links(window.run(branch, read), links, seen, self.dims), self.config.activation
            )
            for branch, links in candidates
        ]
        y = y.clone() if isinstance(self.config.form, Tied) else y  # its candidates need y as it is
        pairwise = not isinstance(self.config.form, Shared)
        apply: Any = CorrelationProbe.apply
        probed: Tensor = apply(y, self.leaf, axis, pairwise, self.loss_scale, window, *activations)
        return probed
