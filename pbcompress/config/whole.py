"""All choices of one call, and how a function takes a part of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pbcompress.config.dendrites import DendriteConfig
from pbcompress.config.recovery import RecoveryConfig
from pbcompress.config.widths import WidthConfig
from pbcompress.core.config_values import Choices
from pbcompress.errors import StateMismatchError

__all__ = ["CompressConfig", "whole_config"]

CONFIG_VERSION = 2


def _not_in_compress() -> DendriteConfig:
    return DendriteConfig.cheap(share=0.0)


@dataclass(frozen=True, kw_only=True)
class CompressConfig(Choices):
    """All choices of one call of `compress`.

    Args:
        width: How widths are chosen.
        dendrites: What grows. `compress` grows nothing by default, because width alone is at least
            as good at the same size and the same steps (`docs/research.md`, entry 27); other
            functions grow `DendriteConfig.cheap`.
        recovery: How weights are trained.
        deploy: Whether `compress` also exports both networks, for the file size and latency rows
            of its table.

    Example:
        >>> config = CompressConfig(recovery=RecoveryConfig(epochs=3))
        >>> CompressConfig.from_dict(config.to_dict()) == config
        True
    """

    width: WidthConfig = field(default_factory=WidthConfig)
    dendrites: DendriteConfig = field(default_factory=_not_in_compress)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    deploy: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data with the version of its form."""
        return {"version": CONFIG_VERSION, **super().to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Rebuild a configuration from `to_dict`; another version is refused."""
        version = data.get("version", CONFIG_VERSION) if isinstance(data, Mapping) else None
        if not isinstance(version, int):
            raise StateMismatchError(
                "A configuration was expected, as CompressConfig.to_dict makes it; found "
                f"{data!r:.80}."
            )
        if version != CONFIG_VERSION:
            advice = "Update pbcompress" if version > CONFIG_VERSION else "Write it anew"
            raise StateMismatchError(
                f"This configuration has version {version}; this pbcompress reads version "
                f"{CONFIG_VERSION}. {advice}."
            )
        return super().from_dict({k: v for k, v in data.items() if k != "version"})


def whole_config(
    config: CompressConfig | WidthConfig | DendriteConfig | RecoveryConfig | None,
    *parts: type[WidthConfig] | type[DendriteConfig] | type[RecoveryConfig],
) -> CompressConfig:
    """Return all choices, where a caller may give them or one of the parts that a function reads.

    Args:
        config: All choices, a part of them, or None for the defaults.
        parts: The parts that may be given alone; the rest of the choices then has its defaults.

    Raises:
        ValueError: Something else was given.

    Example:
        >>> whole_config(WidthConfig(round_to=8), WidthConfig).width.round_to
        8
    """
    if config is None:
        return CompressConfig()
    if isinstance(config, CompressConfig):
        return config
    for name, part in _PARTS.items():
        if isinstance(config, part) and part in parts:
            return CompressConfig(**{name: config})  # type: ignore[arg-type]
    names = ", ".join(f"a {part.__name__}" for part in parts)
    found = f"a {type(config).__name__}" if isinstance(config, Choices) else repr(config)
    raise ValueError(f"config was given as {found}; it must be {names} or a CompressConfig.")


_PARTS = {"width": WidthConfig, "dendrites": DendriteConfig, "recovery": RecoveryConfig}
