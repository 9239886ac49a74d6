"""Cycles of growth with the Trainer of Hugging Face transformers."""

from typing import Any

from transformers import Trainer, TrainerCallback

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig, whole_config
from pbcompress.errors import CompressionError
from pbcompress.recovery.phase import Phase
from pbcompress.recovery.phase_cycles import cycles
from pbcompress.recovery.policy import longest

__all__ = ["grow_with_trainer"]


def grow_with_trainer(
    trainer: Trainer,
    *,
    config: CompressConfig | DendriteConfig | RecoveryConfig | None = None,
    seed: int = 0,
) -> list[Phase]:
    """Grow the model of a trainer, with one ``trainer.train()`` for each phase.

    So each phase has a fresh optimizer and a learning rate schedule of its own. The trainer's
    arguments must evaluate after every epoch and name the metric: ``eval_strategy="epoch"``,
    ``metric_for_best_model`` and ``greater_is_better``. At the end the model has its best weights.
    The trainer keeps dropout on in dendrite phases; statistics of BatchNorm are restored.

    Args:
        trainer: Made with a dataset to evaluate on, without optimizers of its own.
        config: As for `cycles`; the trainer's arguments give rates and batches.
        seed: Seed of the new weights.

    Returns:
        The phases, in order.

    Raises:
        CompressionError: The trainer does not evaluate by epoch, its metric is missing, or it runs
            on several devices. Before training nothing was changed.
        DivergedError: The metric is not finite; the model has its best weights.
    """
    choices, args = whole_config(config, DendriteConfig, RecoveryConfig), trainer.args
    _check(trainer)
    model: Any = trainer.model
    growth, phases = cycles(model, config=choices, seed=seed), []
    epochs = args.num_train_epochs
    reporter = _Reporter(trainer)
    trainer.add_callback(reporter)
    try:
        for phase in growth:
            phases.append(phase)
            reporter.phase = phase
            args.num_train_epochs = longest(phase.kind, choices.recovery, choices.dendrites)
            trainer.optimizer = trainer.lr_scheduler = None
            trainer.model_wrapped = model
            trainer.train()
            if not phase.done:
                raise CompressionError(
                    "The trainer ended before its phase did, so the growth cannot go on. Let no "
                    "other callback or max_steps stop it."
                )
    except BaseException:
        growth.abandon()
        raise
    finally:
        args.num_train_epochs = epochs
        trainer.remove_callback(reporter)
    return phases


def _check(trainer: Trainer) -> None:
    args = trainer.args
    wrong = None
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "epoch":
        wrong = f"eval_strategy={args.eval_strategy}; set it to 'epoch'"
    elif args.metric_for_best_model is None:
        wrong = "no metric_for_best_model; name a metric of the evaluation"
    elif args.load_best_model_at_end or args.max_steps > 0:
        wrong = "load_best_model_at_end or max_steps; leave both to the growth"
    elif trainer.optimizer is not None:
        wrong = "an optimizer of its own; a growth needs a fresh one in each phase"
    elif args.world_size > 1 or args.n_gpu > 1:
        wrong = "several devices; use one, or recover_ under torchrun"
    if wrong is not None:
        raise CompressionError(f"grow_with_trainer was given a trainer with {wrong}.")


class _Reporter(TrainerCallback):
    """Tells the current phase of every evaluation."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.phase: Phase | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell the candidates what the loss is multiplied by."""
        assert self.phase is not None
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        batches = args.gradient_accumulation_steps  # the last step of an epoch may have fewer
        batches = getattr(self.trainer, "current_gradient_accumulation_steps", batches)
        self.phase.set_loss_scale(scale / batches)

    def on_evaluate(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Report the metric, and stop the trainer where the phase is over."""
        assert self.phase is not None
        metrics: dict[str, float] = others["metrics"]
        name = args.metric_for_best_model
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name not in metrics:
            raise CompressionError(
                f"metric_for_best_model is {name!r}, which the evaluation does not give; it gives "
                f"{', '.join(metrics)}. Name one of them."
            )
        score = metrics[name] if args.greater_is_better else -metrics[name]
        control.should_training_stop |= not self.phase.report(score)
