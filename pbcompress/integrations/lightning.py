"""Cycles of growth in a Lightning Trainer."""

from typing import Any, Literal

import lightning.pytorch as pl
from torch import nn

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig
from pbcompress.errors import CompressionError
from pbcompress.recovery.phase import Phase
from pbcompress.recovery.phase_cycles import Cycles, cycles
from pbcompress.recovery.policy import PhaseLog

__all__ = ["GrowthCallback"]


class GrowthCallback(pl.Callback):
    """Grows a LightningModule while it is fitted: phase by phase, with its best weights.

    ``configure_optimizers`` is called anew when a phase begins; let it take the parameters that
    require grad at that time. When growth is over the trainer stops, and the module holds its best
    weights; give the trainer enough ``max_epochs``. If the trainer ends earlier, the module has its
    best weights so far. One device; under several the phases cannot be wrapped anew.

    Args:
        config: As for `cycles`.
        monitor: A metric that ``validation_step`` logs.
        mode: "max" where higher is better, else "min".
        module: Name of the submodule that grows; "" is the whole LightningModule.
        seed: Seed of the new weights.

    Attributes:
        phase: The current phase, the last one when growth is over; None before the fit.
        log: Scores of every phase so far.
    """

    def __init__(
        self,
        config: CompressConfig | DendriteConfig | RecoveryConfig,
        monitor: str,
        *,
        mode: Literal["max", "min"] = "max",
        module: str = "",
        seed: int = 0,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f"mode was given as {mode!r}; it must be 'max' or 'min'.")
        self.config, self.monitor, self.mode = config, monitor, mode
        self.module, self.seed = module, seed
        self.phase: Phase | None = None
        self.log: list[PhaseLog] = []
        self._growth: Cycles | None = None
        self._score: float | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin the growth, before the first optimizer is made."""
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise CompressionError(
                f"GrowthCallback found {trainer.world_size} devices; a growth adds parameters, and "
                "a strategy wraps them once. Use one device, or recover_ under torchrun."
            )
        if trainer.ckpt_path is not None:
            raise CompressionError(
                "GrowthCallback cannot go on from a checkpoint of the trainer: it does not say in "
                "which phase it was. Start anew, or use recover_ with a checkpoint of its own."
            )
        network: nn.Module = pl_module.get_submodule(self.module)
        self._growth = cycles(network, config=self.config, seed=self.seed)
        self.phase, self.log = next(self._growth), self._growth.log

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let what the phase trains be in training mode, and nothing else."""
        assert self.phase is not None
        self.phase.train()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Tell the candidates what the loss is multiplied by."""
        assert self.phase is not None
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        self.phase.set_loss_scale(scale / trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the score of the epoch."""
        if trainer.sanity_checking:
            return
        found = trainer.callback_metrics
        if self.monitor not in found:
            raise CompressionError(
                f"GrowthCallback monitors {self.monitor!r}, which is not logged; logged are "
                f"{', '.join(found) or 'none'}. Log it in validation_step, or monitor another one."
            )
        value = float(found[self.monitor])
        self._score = value if self.mode == "max" else -value

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the score, and begin the next phase where this one is over."""
        if self._score is None or self._growth is None or self.phase is None:
            return
        score, self._score = self._score, None
        if self.phase.report(score):
            next(self._growth)
            return
        try:
            self.phase = next(self._growth)
        except StopIteration:
            self._growth = None
            trainer.should_stop = True
            return
        trainer.strategy.setup_optimizers(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave an unfinished growth with its best weights."""
        if self._growth is not None:
            self._growth.abandon()
            self._growth = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave a growth that failed with its best weights."""
        self.on_fit_end(trainer, pl_module)
