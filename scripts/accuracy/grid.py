"""What `run.py` compares: tasks, and the arms in which a network becomes smaller."""

from dataclasses import dataclass, replace
from typing import Any

import pbcompress as pb

__all__ = ["ARMS", "OFF", "TASKS", "Arm", "Task"]

OFF = pb.DendriteConfig(max_sets=0)


@dataclass(frozen=True)
class Task:
    """A network and its data.

    Attributes:
        data: Arguments of `load_loaders`.
        model: Arguments of `create_model`.
        epochs: Of every arm.
        base_epochs: Of the network that is compressed.
        lr: Peak learning rate, of the base too.
        pretrained: Whether the network begins with the weights of MiniLM.
    """

    data: dict[str, Any]
    model: dict[str, Any]
    epochs: int
    base_epochs: int
    lr: float = 3e-3
    pretrained: bool = False


def _images(data: str, train: int, epochs: int, base_epochs: int, **model: Any) -> Task:
    images = {"name": data, "num_val": 2000, "train_limit": train, "batch_size": 64}
    return Task(images, model, epochs, base_epochs)


def _table(name: str, features: int, classes: int, num_val: int, epochs: int) -> Task:
    data = {"name": name, "num_val": num_val, "batch_size": 128}
    model = {"name": "mlp", "in_features": features, "hidden": (128, 64), "num_classes": classes}
    return Task(data, model, epochs, epochs)


POOLED = {"name": "small_cnn", "widths": (16, 32, 64), "pool": True}
TASKS = {
    "digits_mlp": Task(
        {"name": "digits", "num_val": 288, "batch_size": 64},
        {"name": "mlp", "in_features": 64, "hidden": (64, 64)},
        60,
        40,
    ),
    "mnist_1200": _images("mnist", 1200, 40, 30, name="lenet"),
    "fashion_1200": _images("fashion_mnist", 1200, 40, 30, **POOLED),
    "fashion_resnet_1200": _images(
        "fashion_mnist", 1200, 15, 15, name="resnet20", in_channels=1, width=0.5
    ),
    "fashion_58000": _images("fashion_mnist", 58_000, 4, 4, name="lenet"),
    "fashion_12000": _images("fashion_mnist", 12_000, 12, 10, name="lenet"),
    "fashion_mlp_12000": _images(
        "fashion_mnist", 12_000, 20, 15, name="mlp", hidden=(128, 64), batch_norm=True
    ),
    "cifar_5000": _images("cifar10", 5000, 20, 20, **POOLED, in_channels=3),
    "digits_resnet": Task(
        {"name": "digits", "num_val": 288, "batch_size": 64},
        {"name": "resnet20", "in_channels": 1, "width": 0.5},
        20,
        15,
    ),
    "digits_mobilenet": Task(
        {"name": "digits", "num_val": 288, "batch_size": 64},
        {"name": "mobilenet_small", "in_channels": 1, "width": 0.75},
        25,
        40,
    ),
    "digits_resnet_400": Task(
        {"name": "digits", "num_val": 288, "train_limit": 400, "batch_size": 64},
        {"name": "resnet20", "in_channels": 1},
        40,
        40,
    ),
    "fashion_mobilenet_1200": _images(
        "fashion_mnist", 1200, 15, 20, name="mobilenet_small", in_channels=1
    ),
    "watch_cnn": Task(
        {"name": "watch", "num_val": 271, "batch_size": 64},
        {"name": "cnn1d", "widths": (16, 32, 64)},
        30,
        20,
    ),
    "r8_transformer": Task(
        {"name": "reuters_r8", "num_val": 400, "train_limit": 1600, "batch_size": 64},
        {"name": "text_transformer"},
        12,
        20,
    ),
    "r8_minilm": Task(
        {"name": "reuters_r8", "num_val": 200, "train_limit": 600, "batch_size": 32},
        {"name": "minilm"},
        5,
        5,
        lr=3e-4,
        pretrained=True,
    ),
    "letter_mlp": _table("letter", 16, 26, 2000, 30),
    "penbased_mlp": _table("penbased", 16, 10, 1000, 30),
    "satimage_mlp": _table("satimage", 36, 6, 800, 40),
}


@dataclass(frozen=True)
class Arm:
    """How a network of a given size is made and trained.

    Attributes:
        dendrites: What grows; `OFF` for width alone.
        parts: Shares of the epochs of the phases: first neurons, dendrites, neurons, thaw. One
            share is neurons alone.
        distillation: Weight of the original network's scores.
        distance: How they are compared.
        scratch: Whether the weights are drawn anew.
        allocation: How widths are shared out.
        races: Whether `compress` chooses, by a trial of dendrites and of width alone.
        equal_flops: Whether FLOPs, dendrites included, are at most those of width alone too; the
            parameters are then fewer.
        trial: Share of the epochs of each network's trial, where `compress` chooses.
        only_last: Whether the last Linear alone grows.
        wide_first: Whether the first layer has twice the width that it would have, at most its
            original one.
        round_to: What widths are multiples of.
        own_rate: Whether a range test finds the learning rate, in place of that of the task.
        averaged: Whether averages of the weights are scored and kept, in place of the latest.
        compensated: Whether what reads narrowed channels is fitted right after the cut.
    """

    dendrites: pb.DendriteConfig = OFF
    parts: tuple[float, ...] = (1.0,)
    distillation: float = 0.0
    distance: str = "kl"
    scratch: bool = False
    allocation: str = "uniform"
    races: bool = False
    equal_flops: bool = False
    trial: float = 0.1
    only_last: bool = False
    wide_first: bool = False
    round_to: int | str = 1
    own_rate: bool = False
    averaged: bool = False
    compensated: bool = False


CORRELATION = pb.Correlation(initialization="random")  # as in the published method
HYBRID = pb.Hybrid(initialization="random")
SPECTRAL = pb.Correlation(initialization="spectral")


def _grow(rule: Any, **choices: Any) -> pb.DendriteConfig:
    return pb.DendriteConfig(rule=rule, share=1.0, **choices)


def _balanced(dendrites: pb.DendriteConfig, parts: tuple[float, ...]) -> Arm:
    return Arm(dendrites, parts, allocation="accurate")


def _joint(form: str, distillation: float = 0.0, **choices: Any) -> Arm:
    """Dendrites that are there from the start and train by the task's loss with all the rest."""
    grown = _grow(pb.Gradient(), form=form, at_start=True, **choices)
    return Arm(grown, (0, 0, 1), distillation)


def _shipped(**choices: Any) -> Arm:
    """The widths that ship by default, trained at a rate of their own."""
    return Arm(**{"allocation": "balanced", "round_to": "auto", "own_rate": True} | choices)


def _absorbed(rule: Any, parts: tuple[float, ...], **choices: Any) -> Arm:
    """Dendrites that fold into their neurons in the end, so that they cost no width."""
    grown = _grow(rule, at_start=isinstance(rule, pb.Gradient), **choices)
    return _shipped(dendrites=grown, parts=parts, averaged=True)


STAGED = (0.35, 0.2, 0.3, 0.15)
AT_ONCE = (0.4, 0.2, 0.4)
ARMS = {
    "width": Arm(),
    "width, distilled": Arm(distillation=0.5),
    "width, isomorphic": Arm(allocation="isomorphic"),
    "width, balanced": Arm(allocation="accurate"),
    "width, balanced, equal FLOPs": Arm(allocation="accurate", equal_flops=True),
    "width, accurate, aligned": Arm(allocation="accurate", round_to="auto"),
    "width, compromise": Arm(allocation="balanced"),
    "width, compromise, aligned": Arm(allocation="balanced", round_to="auto"),
    "width, fast": Arm(allocation="fast"),
    "width, fast, aligned": Arm(allocation="fast", round_to="auto"),
    "width, aligned": Arm(round_to="auto"),
    "width, own rate": Arm(own_rate=True),
    "accurate, own rate": Arm(allocation="accurate", round_to="auto", own_rate=True),
    "balanced, own rate": Arm(allocation="balanced", round_to="auto", own_rate=True),
    "fast, own rate": Arm(allocation="fast", round_to="auto", own_rate=True),
    "default": _shipped(averaged=True),
    "latest weights": _shipped(),
    "compensated": _shipped(averaged=True, compensated=True),
    "distilled": _shipped(averaged=True, distillation=0.5),
    "distilled by relations": _shipped(averaged=True, distillation=0.5, distance="dist"),
    "absorbed linear": _absorbed(pb.Gradient(), (0, 0, 1), activation="linear", normalize=True),
    "absorbed linear, no norm": _absorbed(
        pb.Gradient(), (0, 0, 1), activation="linear", normalize=False
    ),
    "absorbed annealed": _absorbed(pb.Gradient(), (0, 0, 1), annealing=0.7),
    "absorbed after correlation": _absorbed(HYBRID, AT_ONCE, annealing=0.7),
    "width, wide first": Arm(wide_first=True),
    "scratch": Arm(scratch=True),
    "correlation": Arm(_grow(CORRELATION), STAGED),
    "correlation, no dendrites": Arm(_grow(CORRELATION)),  # the same widths, and room left free
    "correlation first": Arm(_grow(CORRELATION, at_start=True), (0, 0.2, 0.65, 0.15)),
    "correlation, shared": Arm(_grow(CORRELATION, form="shared"), STAGED),
    "correlation, spectral": Arm(_grow(SPECTRAL), STAGED),
    "correlation, shared, spectral": Arm(_grow(SPECTRAL, form="shared"), STAGED),
    "gradient": Arm(_grow(pb.Gradient()), (0.5, 0.0, 0.5)),
    "hybrid": Arm(_grow(HYBRID), AT_ONCE),
    "hybrid, spectral": Arm(_grow(pb.Hybrid(initialization="spectral")), AT_ONCE),
    "hybrid, distilled": Arm(_grow(HYBRID), AT_ONCE, 0.5),
    "joint full": _joint("full"),
    "joint grouped": _joint("grouped"),
    "joint lowrank": _joint("lowrank"),
    "joint shared": _joint("shared"),
    "joint shared, distilled": _joint("shared", 0.5),
    "joint tied": _joint("tied"),
    "joint full, last layer": replace(_joint("full"), only_last=True),
    "joint full, cheap": _joint("full", max_price=0.25),
    "joint shared, cheap": _joint("shared", max_price=0.25),
    "joint shared, cheap, distilled": _joint("shared", 0.5, max_price=0.25),
    "joint shared, cheap, equal FLOPs": replace(_joint("shared", max_price=0.25), equal_flops=True),
    "joint full, cheap, equal FLOPs": replace(_joint("full", max_price=0.25), equal_flops=True),
    "auto": Arm(pb.DendriteConfig.cheap(), races=True),
    "correlation, balanced": _balanced(_grow(CORRELATION), STAGED),
    "joint shared, cheap, balanced": _balanced(
        _grow(pb.Gradient(), form="shared", at_start=True, max_price=0.25), (0, 0, 1)
    ),
    "auto, balanced": Arm(pb.DendriteConfig.cheap(), races=True, allocation="accurate"),
    "auto, longer trial": Arm(pb.DendriteConfig.cheap(), races=True, trial=0.25),
    "auto, tied": Arm(pb.DendriteConfig.cheap(form="tied"), races=True),
    "auto, distilled": Arm(pb.DendriteConfig.cheap(), distillation=0.5, races=True),
}
