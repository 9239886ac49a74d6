"""Who runs the steps: one process in plain torch, or Lightning Fabric for all else.

The only module that imports Lightning, and only where it is needed.

Fabric keeps no state outside its object, so two trainings of a process may differ in precision, and
it sets a network up anew for each phase, as growth needs: DistributedDataParallel fixes the list of
parameters when it wraps. What decides (clock, statistics, scores) its `Processes` agree on.
"""

import inspect
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pbcompress.config.recovery import EngineConfig
from pbcompress.core.modules import device_of
from pbcompress.core.processes import Processes, join_processes, world_size
from pbcompress.errors import CompressionError, first_line

__all__ = ["Engine", "choose_device", "make_engine"]

Optimizer = torch.optim.Optimizer


class Engine:
    """One process on one device, in full precision.

    Attributes:
        processes: Those that train together.
    """

    def __init__(self, compiled: bool = False, processes: Processes | None = None) -> None:
        self._compiled = compiled
        self.processes = processes or Processes()

    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
        """Return what runs ``model`` in one phase, and what steps its optimizer."""
        return self._run_form(model), optimizer

    def _run_form(self, model: nn.Module) -> nn.Module:
        if not self._compiled:
            return model
        # what was compiled before is found again by its code, and torch 2.9 does not see that a
        # parameter trains now: it would get no gradient
        torch.compiler.reset()
        compiled: nn.Module = torch.compile(model)  # type: ignore[assignment]
        return compiled

    def batches(self, batches: Iterable[Any]) -> Iterable[Any]:
        """Return the part of the train batches that this process takes."""
        return batches

    @property
    def loss_scale(self) -> float:
        """What `backward` multiplies a loss by."""
        return 1.0

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss."""
        loss.backward()

    def accumulating(self, network: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        """Return a context in which gradients wait to be shared between processes."""
        return nullcontext()

    def clip(self, network: nn.Module, optimizer: Any, max_norm: float) -> None:
        """Clip the norm of the gradients of what ``optimizer`` holds."""
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(trained, max_norm)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs, as JSON."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state`."""


class _FabricEngine(Engine):
    """Mixed precision and several processes, by Lightning Fabric."""

    def __init__(self, device: torch.device, config: EngineConfig) -> None:
        fabric = _import_fabric()
        super().__init__(config.compile, join_processes())
        world = self.processes.world
        self._scaler: Any = None
        self._loader: Any = None
        plugins = []
        if config.precision != "32":
            is_half = config.precision == "fp16"
            self._scaler = torch.amp.GradScaler(device.type) if is_half else None
            kind = "16-mixed" if is_half else "bf16-mixed"
            plugins.append(fabric.plugins.MixedPrecision(kind, device.type, self._scaler))
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world > 1 else 1
        index = device.index or 0
        self._fabric = fabric.Fabric(
            accelerator=device.type,
            devices=local if local > 1 or device.type == "cpu" else [index],
            num_nodes=world // local,
            strategy=_strategy(fabric) if world > 1 else "auto",
            plugins=plugins,
        )
        self._fabric.launch()
        if self._fabric.global_rank != self.processes.rank:
            raise CompressionError(
                f"Process {self.processes.rank} of torch.distributed would train as number "
                f"{self._fabric.global_rank}. Start the processes with torchrun, which numbers "
                "them."
            )

    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
        self.processes.share(model)  # before torch 2.13 the strategy would leave them as they are
        network, wrapped = self._fabric.setup(
            self._run_form(model), optimizer, _reapply_compile=False
        )
        return network, wrapped

    def batches(self, batches: Iterable[Any]) -> Iterable[Any]:
        if self.processes.world == 1:
            return batches
        if isinstance(batches, DataLoader):
            self._loader = self._fabric.setup_dataloaders(batches, move_to_device=False)
            loader: Iterable[Any] = self._loader
            return loader
        return _Sharded(batches, self.processes.rank, self.processes.world)

    @property
    def loss_scale(self) -> float:
        return float(self._scaler.get_scale()) if self._scaler is not None else 1.0

    def backward(self, loss: Tensor) -> None:
        self._fabric.backward(loss)

    def accumulating(self, network: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        if self.processes.world == 1:
            return nullcontext()
        context: AbstractContextManager[Any] = self._fabric.no_backward_sync(network, enabled)
        return context

    def clip(self, network: nn.Module, optimizer: Any, max_norm: float) -> None:
        # A step with an overflow is skipped by the scaler, so its norm does not matter.
        self._fabric.clip_gradients(network, optimizer, max_norm=max_norm, error_if_nonfinite=False)

    def state(self) -> dict[str, Any]:
        state = {} if self._scaler is None else {"scaler": self._scaler.state_dict()}
        if self._loader is not None:  # its sampler shuffles by the number of passes
            state["passes"] = self._loader._num_iter_calls
        return state

    def restore(self, state: dict[str, Any]) -> None:
        if self._loader is not None:
            self._loader._num_iter_calls = state["passes"]
        if self._scaler is not None and state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])


class _Sharded(Iterable[Any]):
    """Every ``world``-th batch; an incomplete last round is left out: all take the same number."""

    def __init__(self, batches: Iterable[Any], rank: int, world: int) -> None:
        self._batches, self._rank, self._world = batches, rank, world

    def __iter__(self) -> Iterator[Any]:
        own: Any = None
        for number, batch in enumerate(self._batches):
            if number % self._world == self._rank:
                own = batch
            if number % self._world == self._world - 1:
                yield own

    def __len__(self) -> int:
        return len(self._batches) // self._world  # type: ignore[arg-type]


def choose_device(device: str | torch.device | None) -> torch.device:
    """Return the device that was asked for; None: CUDA, then MPS, then the CPU.

    Of several processes each has its own GPU, where none is named by its number.

    Raises:
        CompressionError: It is not usable here.
    """
    if world_size() > 1 and torch.cuda.is_available() and str(device) in ("None", "cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except Exception as err:
        raise CompressionError(
            f"device={device!r} was asked for and is not usable here ({first_line(err)}). "
            "Leave device out, or pass 'cpu'."
        ) from err
    return chosen


def make_engine(model: nn.Module, config: EngineConfig) -> Engine:
    """Return what runs the steps that ``config`` asks for, on the device of ``model``.

    Raises:
        CompressionError: Lightning is needed and not there.
    """
    if config.precision == "32" and world_size() == 1:
        return Engine(config.compile)
    return _FabricEngine(device_of(model), config)


def _strategy(fabric: Any) -> Any:
    """Return how processes share gradients; buffers are shared after an epoch, by `Processes`.

    A forward pass thus talks to nobody, and may fail in one process.
    """
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    return fabric.strategies.DDPStrategy(**{buffers: False})  # torch 2.13 has another name for it


def _import_fabric() -> Any:
    try:
        import lightning.fabric as fabric
    except Exception as err:  # a broken torchvision shows as a RuntimeError
        raise CompressionError(
            "Mixed precision and several processes need Lightning Fabric, which could not be "
            f"imported ({err}). Install pbcompress[engine], or use EngineConfig(precision='32') "
            "in one process."
        ) from err
    return fabric
