"""Specs that files store by kind: the classes that define one, and building one from what was stored."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any, TypeVar

from crosscoders._io import check_field_types, check_keys

Spec = TypeVar("Spec")


def register_kind(registry: dict[str, type[Spec]], cls: type[Spec], *, family: str) -> None:
    """Enter a class under the `kind` in its body, if there is one.

    Args:
        registry: Classes of the family by kind; the same class, defined again, takes its own place.
        cls: The class.
        family: Name of the family, for the message.

    Raises:
        TypeError: Another class has this kind.
    """
    kind = cls.__dict__.get("kind")
    if kind is None:
        return
    known = registry.get(kind)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(
            f"{family}: kind {kind!r} of {cls.__module__}.{cls.__qualname__} is taken by "
            f"{known.__module__}.{known.__qualname__}; choose another."
        )
    registry[kind] = cls


def spec_to_dict(spec: Any) -> dict[str, Any]:
    """The kind and the parameters, JSON-ready: tuples as lists."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()}
    return {"kind": spec.kind, **plain}


def spec_from_dict(
    registry: Mapping[str, type[Spec]], data: Mapping[str, Any], *, where: str, fill_defaults: bool
) -> Spec:
    """Rebuild a spec from `spec_to_dict`.

    Args:
        registry: Classes of the family by kind.
        data: The kind and every parameter; lists become tuples.
        where: What the message calls the data.
        fill_defaults: Parameters left out take their defaults.

    Raises:
        ValueError: Unknown kind, unknown or missing parameters, or a value that the class refuses.
    """
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in registry:
        raise ValueError(
            f"{where}: unknown kind {kind!r}; known kinds are {sorted(registry)}. "
            "If it is your own, import the module that defines it first."
        )
    cls: Any = registry[kind]
    known = ["kind", *(field.name for field in fields(cls))]
    has_default = {field.name for field in fields(cls) if field.default is not MISSING}
    required = [name for name in known if not (fill_defaults and name in has_default)]
    check_keys(f"{where} {kind!r}", data, known=known, required=required)
    check_field_types(f"{where} {kind!r}", data, cls)
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in data.items() if key != "kind"}
    return cls(**values)
