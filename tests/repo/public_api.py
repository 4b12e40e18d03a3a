"""Lists what is public: names with signatures, state-dict keys and config.json keys."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

_PACKAGES = re.compile(
    r"\b(jaxtyping|torch|collections\.abc|typing|pathlib|_C|nn\.modules\.module|crosscoders(\.\w+)*)\."
)
NAMESPACES = [
    "",
    "activation_fns",
    "models",
    "models.adapters",
    "hub",
    "kernels",
    "training",
    "testing",
    "metrics",
    "losses",
    "parallel",
    "structures",
    "diffing",
    "reasoning",
    "interventions",
    "geometry",
    "experiments",
]


def public_modules() -> dict[str, ModuleType]:
    """The modules whose `__all__` is the public surface."""
    names = [f"crosscoders.{name}".rstrip(".") for name in NAMESPACES]
    return {name: importlib.import_module(name) for name in names}


def signature_of(fn: Callable[..., Any]) -> str:
    """A signature as text, the same on every machine and Python version."""
    text = re.sub(
        r"\b(jaxtyping|torch|collections\.abc|typing|pathlib|crosscoders(\.\w+)*)\.",
        "",
        str(inspect.signature(fn)),
    )
    if " at 0x" in text:
        raise ValueError(f"the signature of {fn.__qualname__} holds an address: {text}")
    return text


def own_members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public members that this package defines for a class, its own bases included, each once."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        if not owner.__module__.startswith("crosscoders"):
            continue
        for name, member in vars(owner).items():
            if name not in seen and not name.startswith("_"):
                seen.add(name)
                yield name, member


def callable_of(member: Any) -> Callable[..., Any] | None:
    """The function behind a method, class method or static method."""
    inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    return inner if inspect.isfunction(inner) else None


def class_lines(name: str, cls: type) -> Iterator[str]:
    """One line for the constructor, each public method, property and constant."""
    if issubclass(cls, BaseException):
        yield f"{name}: exception({', '.join(base.__name__ for base in cls.__bases__)})"
        return
    abstract = " (abstract)" if inspect.isabstract(cls) else ""
    yield f"{name}: class{signature_of(cls)}{abstract}"
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    for member_name, member in own_members(cls):
        if function := callable_of(member):
            yield f"{name}.{member_name}: def{signature_of(function)}"
        elif isinstance(member, property):
            yield f"{name}.{member_name}: property -> {signature_of(member.fget).split('->')[-1].strip()}"
        elif member_name not in fields and isinstance(member, str | int | float):
            yield f"{name}.{member_name} = {member!r}"


def name_lines(name: str, value: Any) -> list[str]:
    """The lines of one public name."""
    if inspect.isclass(value):
        return list(class_lines(name, value))
    if callable(value):
        return [f"{name}: def{signature_of(value)}"]
    return [f"{name}: {type(value).__name__}"]


def api_lines() -> list[str]:
    """All lines of tests/public_api.txt that come from `__all__`, sorted.

    A name that a narrower namespace also lists is described there and only pointed to from the others.
    """
    home: dict[int, str] = {}
    modules = public_modules()
    for module_name, module in reversed(modules.items()):
        for name in module.__all__:
            home.setdefault(id(getattr(module, name)), f"{module_name}.{name}")
    lines: list[str] = []
    for module_name, module in modules.items():
        for name in module.__all__:
            full, value = f"{module_name}.{name}", getattr(module, name)
            lines += name_lines(full, value) if home[id(value)] == full else [f"{full}: {home[id(value)]}"]
    return sorted(lines)


def public_callables() -> dict[str, Callable[..., Any]]:
    """Every public function and method of the package by its full name."""
    found: dict[str, Callable[..., Any]] = {}
    for module_name, module in public_modules().items():
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value):
                pairs = [(f"{module_name}.{name}.{k}", callable_of(m)) for k, m in own_members(value)]
                found |= {k: function for k, function in pairs if function}
            elif inspect.isfunction(inspect.unwrap(value)):
                found[f"{module_name}.{name}"] = value
    return found


def is_typed(fn: Callable[..., Any]) -> bool:
    """Whether `@typed` stands above the definition; read from the source, which no import hook changes."""
    decorators = inspect.getsource(inspect.unwrap(fn)).split("def ", 1)[0]
    return re.search(r"^\s*@typed$", decorators, re.M) is not None


def has_something_to_check(fn: Callable[..., Any]) -> bool:
    """Whether a checker could ever object: there is an argument, or a result with a shape.

    Generators are left out: the checker would see the context manager or iterator, not what it yields.
    """
    bare = inspect.unwrap(fn)
    if getattr(fn, "__isabstractmethod__", False) or inspect.isgeneratorfunction(bare):
        return False
    parameters = inspect.signature(bare).parameters.values()
    return (
        any(p.annotation not in (Any, inspect.Parameter.empty) for p in parameters)
        or "[Tensor," in signature_of(bare).split("->")[-1]
    )
