"""The path from a model to networks of several sizes, in one call."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from pbcompress.config.budget import Budget
from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.whole import CompressConfig
from pbcompress.config.widths import WidthConfig
from pbcompress.core.drafts import draft_folder
from pbcompress.core.modules import copy_model
from pbcompress.errors import DivergedError
from pbcompress.frontiers.elsewhere import Place, check_executor, run_elsewhere
from pbcompress.frontiers.points import Frontier, FrontierPoint
from pbcompress.frontiers.targets import OfTarget, Shared, Target, is_over, prepare, run, targets_of
from pbcompress.runs.held_folder import held
from pbcompress.runs.run_folder import read_facts, read_run
from pbcompress.runs.saved_network import load
from pbcompress.training.callbacks import Callback
from pbcompress.training.progress import ProgressBar
from pbcompress.training.task import Batches, Data, Task

__all__ = ["frontier"]


def frontier(
    model: nn.Module,
    targets: Iterable[float | Budget],
    *,
    example_inputs: object = None,
    data: Data | Batches | None = None,
    task: Task | None = None,
    config: CompressConfig | WidthConfig | DendriteConfig | RecoveryConfig | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    executor: Place = None,
) -> Frontier:
    """Shrink a trained network to several targets, and lay the results side by side.

    Every target is a call of `compress` from the original, in a folder of its own, so a point is
    what that call gives alone, whatever the other targets are. All of them are checked and planned
    before the first is trained.

    Args:
        model: As for `compress`; never modified.
        targets: Any number of targets, each as for `compress`, such as ``[0.5, 0.25]``.
        example_inputs: As for `compress`.
        data: As for `compress`.
        task: As for `compress`.
        config: As for `compress`.
        device: As for `compress`.
        seed: As for `compress`, of every target.
        run_dir: Folder with a folder for each target, such as ``params-0.25``. The same call goes
            on where it was stopped, and more targets may be added. None: nothing is kept.
        callbacks: As for `compress`; the target stands before the name of a stage, in
            ``on_stage`` and in the records of ``on_epoch``: "params-0.25/width". Of a target that
            runs elsewhere they hear at its end.
        progress: Show a progress bar on the standard error stream.
        executor: Where targets run, several at a time: an object with ``submit`` as
            `concurrent.futures.ProcessPoolExecutor` has it, or "ray" for the cluster that Ray is
            connected to, or one of this machine. There a worker that dies is replaced, and its
            target goes on. Workers must see ``run_dir``. None: in this process, one after the
            other.

    Returns:
        The networks, and what each costs and scores.

    Raises:
        TargetUnreachableError: A target is not below the original or below what is reachable;
            nothing was trained.
        CompressionError: The targets, executor, model, inputs, data or folder cannot be used; a
            target failed elsewhere, after all others were run.
        StateMismatchError: ``run_dir`` holds runs of another call.
        DivergedError: The training of every target diverged.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> config = CompressConfig(deploy=False)
        >>> found = frontier(net, [0.25, 0.5], example_inputs=torch.zeros(1, 8), config=config)
        >>> [point.target for point in found.points]
        ['params-0.5', 'params-0.25']
    """
    shared = Shared(model, example_inputs, data, task, config, device, seed)
    check_executor(executor, shared, has_folder=run_dir is not None)
    watching = (*callbacks, ProgressBar()) if progress else tuple(callbacks)
    with _folder(run_dir) as folder:
        found = targets_of(targets, folder)
        with held(folder):
            for target in found:
                prepare(shared, target)
            diverged = dict(_run_all(shared, found, watching, executor))
            points = [
                _point(shared.model, target, keeps=run_dir is not None)
                for target in found
                if target.name not in diverged
            ]
    if not points:
        name, why = next(iter(diverged.items()))
        raise DivergedError(f"The training of every target diverged; that of {name}: {why}")
    points.sort(key=lambda point: point.params, reverse=True)
    return Frontier(points=tuple(points), diverged=diverged)


@contextmanager
def _folder(run_dir: str | Path | None) -> Iterator[Path]:
    """Give the folder of a frontier: the user's, or one that is gone at the end."""
    if run_dir is not None:
        yield Path(run_dir).absolute()  # workers may start elsewhere
        return
    with draft_folder("frontier") as folder:
        yield folder


def _run_all(
    shared: Shared, targets: Sequence[Target], callbacks: Sequence[Callback], executor: Place
) -> Iterator[tuple[str, str]]:
    """Run targets that are not over yet; yield those whose training diverged, with what it said."""
    waiting = [target for target in targets if not is_over(target)]
    for target in targets:
        if target not in waiting:
            _tell(callbacks, target)
    ended: Iterator[tuple[Target, str | None]]
    if executor is None:
        ended = ((t, run(shared, t, [OfTarget(one, t) for one in callbacks])) for t in waiting)
    else:
        ended = run_elsewhere(executor, shared, waiting)
    for target, why in ended:
        if why is not None:
            yield target.name, why
        elif executor is not None:
            _tell(callbacks, target)


def _tell(callbacks: Sequence[Callback], target: Target) -> None:
    """Tell callbacks of trainings that are over."""
    _, history = read_run(target.folder)
    for name in dict.fromkeys(record["stage"] for record in history):
        records = history.stage(name)
        for callback in (OfTarget(one, target) for one in callbacks):
            callback.on_stage(name, len(records))
            for record in records:
                callback.on_epoch(record)
            callback.on_end()


def _point(model: nn.Module, target: Target, *, keeps: bool) -> FrontierPoint:
    return FrontierPoint(
        target=target.name,
        budget=target.budget,
        facts=read_facts(target.folder),
        model=load(target.folder, lambda: copy_model(model)),
        run_dir=target.folder if keeps else None,
    )
