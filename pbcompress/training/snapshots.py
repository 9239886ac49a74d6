"""The weights of a network as tensors, to be kept and restored while it trains.

Weights are what ``model.state_dict()`` returns: modules may leave parts out or add what is no
tensor, and their hooks are respected.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from pbcompress.errors import CompressionError

__all__ = ["check_weights", "put_weights_", "weights_of"]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of what ``model.state_dict()`` has, except extra state that is no tensor.

    Example:
        >>> sorted(weights_of(nn.Linear(2, 1)))
        ['bias', 'weight']
    """
    state = model.state_dict().items()
    return {name: value.detach().clone() for name, value in state if isinstance(value, Tensor)}


def put_weights_(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Restore what `weights_of` returned; what it left out stays as it is.

    Raises:
        RuntimeError: The model has other tensors.
    """
    own = {name for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if own != weights.keys():
        odd = ", ".join(sorted(own ^ weights.keys()))
        raise RuntimeError(f"the model and the weights do not both have {odd}")
    model.load_state_dict(weights, strict=False)


def check_weights(model: nn.Module) -> None:
    """Check that everything that trains can be kept.

    Raises:
        CompressionError: The state of the model leaves out parameters that train.
    """
    kept = model.state_dict()
    lost = [n for n, p in model.named_parameters() if p.requires_grad and n not in kept]
    if lost:
        raise CompressionError(
            f"model.state_dict() leaves out {', '.join(lost)}, which trains, so its best values "
            "could not be kept. Freeze it, or take the hook away that leaves it out."
        )
