"""From axes to members: the values of each combination, and the configuration that they have in common."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.presets import with_preset
from crosscoders.pipeline.sweep.axes import member_names, plain_value, with_values
from crosscoders.pipeline.sweep.member import Member

NO_AXIS = 'a sweep needs a table [sweep] with axes, such as "activation_fn.k" = [16, 32]; it names no axis.'


def combined_values(axes: Mapping[str, Sequence[Any]], combine: str) -> list[dict[str, Any]]:
    """The values of each member by axis; the last axis varies fastest.

    Args:
        axes: The values of each axis.
        combine: "product" or "zip".

    Raises:
        ValueError: No axis, or lists of different lengths to be zipped.
    """
    if not axes:
        raise ValueError(NO_AXIS)
    lengths = {axis: len(values) for axis, values in axes.items()}
    if combine == "zip" and len(set(lengths.values())) > 1:
        raise ValueError(f"[sweep]: combine = 'zip' needs lists of one length, got {lengths}.")
    rows = itertools.product(*axes.values()) if combine == "product" else zip(*axes.values())
    return [dict(zip(axes, row)) for row in rows]


def members_of(config: RunConfig, values: list[dict[str, Any]]) -> tuple[Member, ...]:
    """The members with these values, each with a folder of its own below the sweep's.

    Args:
        config: What they have in common.
        values: Values by axis of each member.

    Raises:
        ValueError: A member whose configuration cannot be, or two that are equal.
    """
    members = []
    for name, each in zip(member_names(values), values):
        try:
            own = with_values(config, each, out=str(Path(config.out) / "members" / name))
        except (ValueError, TypeError) as err:
            raise ValueError(f"sweep: member {name}: {err}") from err
        plain = {axis: plain_value(value) for axis, value in each.items()}
        members.append(Member(name=name, values=plain, config=own))
    for first, second in itertools.combinations(members, 2):
        if dataclasses.replace(first.config, out="") == dataclasses.replace(second.config, out=""):
            raise ValueError(
                f"sweep: members {first.name} and {second.name} are the same ({dict(second.values)}); list "
                "each value once."
            )
    return tuple(members)


def flat_axes(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as names with dots: TOML reads an unquoted `training.lr` as a table in a table.

    Args:
        section: The table [sweep], or a table in it.
        prefix: Where that table stands.

    Raises:
        ValueError: A value that is no list.
    """
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= flat_axes(value, f"{prefix}{key}.")
        elif not isinstance(value, list | tuple):
            raise ValueError(f"[sweep]: {prefix}{key} must be a list of values, got {value!r}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def common_config(given: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> RunConfig:
    """What the members have in common, with the first member's values where only an axis gives any.

    Args:
        given: The configuration without [sweep].
        axes: The values of each axis.
    """
    values = with_preset(given)
    if "activation_fn" in axes and "objective" not in given:
        values.pop("objective", None)  # a preset's objective belongs to its own activation function
    firsts = {axis: each[0] for axis, each in axes.items() if len(each)}
    for name in ("n_latents", "activation_fn", "objective"):
        if name in firsts:
            values[name] = firsts[name]
    parts = {axis.split(".", 1)[1]: v for axis, v in firsts.items() if axis.startswith("activation_fn.")}
    activation_fn = values.get("activation_fn", _default_activation_fn())
    if parts and isinstance(activation_fn, Mapping):
        values["activation_fn"] = {**activation_fn, **parts}
    return RunConfig.from_dict(values)


def _default_activation_fn() -> dict[str, Any]:
    """That of a run which names none."""
    (field,) = [field for field in dataclasses.fields(RunConfig) if field.name == "activation_fn"]
    assert field.default_factory is not dataclasses.MISSING
    return field.default_factory().to_dict()
