"""Seeing every operation of torch, without its compiler."""

from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["OperationMode"]


class OperationMode(TorchDispatchMode):
    """A dispatch mode for which torch does not import its compiler: that outlasts a plan."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
