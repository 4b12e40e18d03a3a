"""What a sweep varies: which settings may be an axis, and the configuration that each value makes."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from crosscoders._typing import typed
from crosscoders.activation_fns import ActivationFn, activation_fn_from_dict
from crosscoders.losses import LossTerm
from crosscoders.pipeline.config import LOSS_TERMS, RunConfig, build_config, default_objective
from crosscoders.training import TrainerConfig
from crosscoders.training.update import run_identity

_WHOLE = ("n_latents", "seed", "activation_fn", "objective")
_SAFE = re.compile(r"[^A-Za-z0-9.+_-]+")
_LONGEST_NAME = 100  # a folder's name has at most 255 bytes


def trainable_fields(config: RunConfig) -> list[str]:
    """The settings of [training] on which a crosscoder's weights depend; the others serve all members."""
    return sorted(set(run_identity(config.training, ())) - {"objective", "backend"})


@typed
def allowed_axes(config: RunConfig) -> list[str]:
    """Every setting that may be an axis: those of the crosscoder and its training, none of the data.

    Args:
        config: What the members have in common; the parameters listed are those of its own activation
            function and loss terms.

    Returns:
        Names with a dot before the last part, such as "training.lr"; sorted, whole settings first.
    """
    terms = config.objective or default_terms(config.activation_fn)
    parts = [f"activation_fn.{field.name}" for field in dataclasses.fields(config.activation_fn)]
    parts += [f"objective.{term.name}.{field.name}" for term in terms for field in dataclasses.fields(term)]
    return [*_WHOLE, *sorted(parts), *(f"training.{name}" for name in trainable_fields(config))]


def default_terms(activation_fn: ActivationFn) -> tuple[LossTerm, ...]:
    """The objective of a run that names none; empty for an activation function of one's own."""
    try:
        return tuple(default_objective(activation_fn))
    except ValueError:
        return ()


@typed
def check_axis(name: str, config: RunConfig) -> None:
    """Refuse an axis on which the harvest would depend, or that there is not.

    Args:
        name: Name with dots.
        config: What the members have in common.

    Raises:
        ValueError: With the reason, and every setting that may vary.
    """
    head, *rest = name.split(".")
    n_parts = {"activation_fn": (0, 1), "objective": (0, 2), "n_latents": (0,), "seed": (0,)}
    if len(rest) in n_parts.get(head, ()) and rest != ["kind"] and all(rest):
        return
    if head == "training" and rest and ".".join(rest) in trainable_fields(config):
        return
    if name == "activation_fn.kind":
        reason = "a kind has parameters of its own, so list whole tables: activation_fn = [{kind = ...}, ...]"
    elif _is_setting(name, config.to_dict()):
        reason = (
            "all members share one harvest, so models, hook, text, batches and what only observes are the "
            "same for all"
        )
    else:
        near = difflib.get_close_matches(name, allowed_axes(config), n=1)
        reason = "there is no such setting" + (f", the nearest is {near[0]!r}" if near else "")
    raise ValueError(f"[sweep]: {name!r} cannot be an axis: {reason}. An axis may be {allowed_axes(config)}.")


def _is_setting(name: str, plain: Mapping[str, Any]) -> bool:
    """Whether a run's configuration, as a dict, has a setting of this name."""
    here: Any = plain
    for part in name.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return False
        here = here[part]
    return True


@typed
def with_values(config: RunConfig, values: Mapping[str, Any], *, out: str) -> RunConfig:
    """A member's configuration: the common one with its values in place.

    Args:
        config: What the members have in common; it is not changed.
        values: One value per axis, by the axis's name; each axis was checked.
        out: The member's folder.

    Returns:
        The configuration, with the objective that will be minimized even where none was named.

    Raises:
        ValueError: A value of the wrong type or out of range, or a parameter that the member's activation
            function or objective lacks.
    """
    activation_fn = _activation_fn(config.activation_fn, values)
    terms = values.get("objective")
    objective = config.objective if terms is None else tuple(_term(term) for term in terms)
    objective = tuple(_with_parameters(objective or default_objective(activation_fn), values))
    training = {name.removeprefix("training."): v for name, v in values.items() if _is_in(name, "training")}
    trained = {**dataclasses.asdict(config.training), **training}
    numbers = {name: values[name] for name in ("n_latents", "seed") if name in values}
    for name, value in numbers.items():
        if type(value) is not int:
            raise ValueError(f"{name} must be int, got {value!r} ({type(value).__name__}).")
    return dataclasses.replace(
        config,
        out=out,
        activation_fn=activation_fn,
        objective=objective,
        training=build_config(TrainerConfig, trained, where="[training]"),
        **numbers,
    )


def _is_in(name: str, section: str) -> bool:
    return name.startswith(f"{section}.")


def _activation_fn(activation_fn: ActivationFn, values: Mapping[str, Any]) -> ActivationFn:
    whole = values.get("activation_fn", activation_fn)
    if not isinstance(whole, ActivationFn):
        whole = activation_fn_from_dict(whole, fill_defaults=True)
    parts = {name.split(".")[1]: v for name, v in values.items() if _is_in(name, "activation_fn")}
    known = [field.name for field in dataclasses.fields(whole)]
    for part in parts:
        if part not in known:
            raise ValueError(f"activation_fn.{part}: {type(whole).__name__} has no {part!r}; it has {known}.")
    return activation_fn_from_dict({**whole.to_dict(), **parts}) if parts else whole


def _term(term: LossTerm | Mapping[str, Any]) -> LossTerm:
    if isinstance(term, LossTerm):
        return term
    values = dict(term)
    name = values.pop("term", None)
    if name not in LOSS_TERMS:
        raise ValueError(f"objective: 'term' must be one of {sorted(LOSS_TERMS)}, got {name!r}.")
    return build_config(LOSS_TERMS[name], values, where=f"objective term {name!r}")


def _with_parameters(objective: tuple[LossTerm, ...] | Any, values: Mapping[str, Any]) -> list[LossTerm]:
    """The terms with the values of axes such as `objective.auxk.weight`."""
    changed = {term.name: dict[str, Any]() for term in objective}
    for name, value in values.items():
        if _is_in(name, "objective"):
            _, term, parameter = name.split(".")
            if term not in changed:
                raise ValueError(f"{name}: the objective has no term {term!r}; it has {sorted(changed)}.")
            changed[term][parameter] = value
    return [
        build_config(
            type(term), {**dataclasses.asdict(term), **changed[term.name]}, where=f"objective.{term.name}"
        )
        if changed[term.name]
        else term
        for term in objective
    ]


@typed
def short_names(axes: list[str]) -> dict[str, str]:
    """The last part of each axis's name where that tells it apart, else the whole name.

    Args:
        axes: Names with dots.
    """
    last = [name.rsplit(".", 1)[-1] for name in axes]
    return {name: end if last.count(end) == 1 else name for name, end in zip(axes, last)}


@typed
def value_text(value: Any) -> str:
    """A value as text of one line: a table by its kind and parameters, a list by its entries.

    Args:
        value: A value of an axis.
    """
    if isinstance(value, ActivationFn):
        value = value.to_dict()
    if isinstance(value, LossTerm):
        value = {"term": value.name, **dataclasses.asdict(value)}
    if isinstance(value, Mapping):
        named = [str(value[key]) for key in ("kind", "term") if key in value]
        rest = [f"{key}={value_text(v)}" for key, v in value.items() if key not in ("kind", "term")]
        return " ".join([*named, *rest])
    if isinstance(value, list | tuple):
        return " + ".join(value_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


@typed
def member_names(values: list[dict[str, Any]]) -> list[str]:
    """One name per member, fit for a folder: its values as `k=32,lr=0.001`; numbers where that fails.

    Args:
        values: Values by axis of each member.
    """
    short = short_names(list(values[0]))
    names = [
        ",".join(f"{short[axis]}={_SAFE.sub('-', value_text(v)).rstrip('-')}" for axis, v in each.items())
        for each in values
    ]
    if len(set(names)) == len(names) and max(map(len, names)) <= _LONGEST_NAME:
        return names
    return [f"member-{at:03d}" for at in range(len(names))]


@typed
def plain_value(value: Any) -> Any:
    """A value as JSON can hold it.

    Args:
        value: A value of an axis.
    """
    if isinstance(value, ActivationFn):
        return value.to_dict()
    if isinstance(value, LossTerm):
        return {"term": value.name, **dataclasses.asdict(value)}
    if isinstance(value, list | tuple):
        return [plain_value(part) for part in value]
    return value
