"""What a docstring of a public name owes: a summary, every parameter, the result, every error it raises."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

from tests.repo.public_api import callable_of, own_members, public_modules

_SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Example|Examples|Note|Attributes|References):$", re.M)
_ENTRY = re.compile(r"^    \*{0,2}(\w[\w.]*)(?:, \w+)*(?: \([^)]*\))?:", re.M)


@dataclasses.dataclass(frozen=True)
class Documented:
    """One public function, method or class: its docstring, and where the same contract is stated above it."""

    name: str
    doc: str
    above: tuple[str, ...]
    parameters: tuple[str, ...]
    has_result: bool
    raises: frozenset[str]

    def faults(self) -> list[str]:
        """What the docstring does not say, in words."""
        own, told = sections(self.doc), [sections(text) for text in (self.doc, *self.above)]
        summary = own[""].strip().partition("\n\n")[0]
        found = [] if summary.endswith((".", ":", "?")) else ["no summary that is a sentence"]
        named = {entry for text in told for entry in entries(text.get("Args", ""))}
        found += [f"no Args entry for {name}" for name in self.parameters if name not in named]
        if self.has_result and not any({"Returns", "Yields"} & text.keys() for text in told):
            found.append("no Returns")
        errors = {entry for text in told for entry in entries(text.get("Raises", ""))}
        return found + [f"no Raises entry for {name}" for name in sorted(self.raises - errors)]


def sections(doc: str) -> dict[str, str]:
    """The sections of a Google docstring by their heading; what stands before the first one under ''."""
    parts = _SECTION.split(inspect.cleandoc(doc))
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section: str) -> set[str]:
    """The names that the entries of a section begin with, several at once as `a, b: text`."""
    heads = [match[0] for match in _ENTRY.finditer(section)]
    return {name for head in heads for name in re.findall(r"\w+", re.sub(r"\([^)]*\)", "", head))}


def raised_in(fn: Callable[..., Any]) -> frozenset[str]:
    """Names of the exception classes that a function raises itself; not what its callees raise."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(fn))))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = error.attr if isinstance(error, ast.Attribute) else getattr(error, "id", "")
            found |= {name} if name[:1].isupper() else set()
    return frozenset(found - {"NotImplementedError", "AttributeError", "AssertionError"})


def parameters_of(fn: Callable[..., Any], *, is_method: bool) -> tuple[str, ...]:
    """Names of the parameters but for `self` and `cls`."""
    names = list(inspect.signature(inspect.unwrap(fn)).parameters)
    return tuple(names[1:] if is_method and names[:1] in (["self"], ["cls"]) else names)


def _has_result(fn: Callable[..., Any], *, owner: str | None = None) -> bool:
    """Whether a call owes a Returns section.

    What takes no parameter is read like a property, and its summary says what it gives; a class method that
    gives its own class is a constructor.
    """
    annotation = inspect.signature(inspect.unwrap(fn)).return_annotation
    if not parameters_of(fn, is_method=owner is not None):
        return False
    told = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return annotation not in (None, inspect.Signature.empty) and told.strip("'\"") not in (
        "None",
        "Self",
        owner,
    )


def _of_class(name: str, cls: type) -> Documented:
    """A class as its constructor: dataclass fields or the parameters of `__init__`."""
    bases = tuple(base.__doc__ or "" for base in cls.__mro__[1:] if base.__module__.startswith("crosscoders"))
    made = [
        vars(owner)[method]
        for owner in cls.__mro__
        for method in ("__init__", "__post_init__")
        if owner.__module__.startswith("crosscoders") and inspect.isfunction(vars(owner).get(method))
    ]
    if dataclasses.is_dataclass(cls):
        parameters = tuple(field.name for field in dataclasses.fields(cls) if field.init)
    else:
        own = "__init__" in vars(cls) and not getattr(cls, "_is_protocol", False)
        parameters = parameters_of(vars(cls)["__init__"], is_method=True) if own else ()
    written = [fn for fn in made if "<string>" not in inspect.unwrap(fn).__code__.co_filename]
    raises = frozenset().union(*(raised_in(fn) for fn in written if fn.__qualname__.startswith(cls.__name__)))
    return Documented(name, cls.__doc__ or "", bases, parameters, False, raises)


def _of_member(name: str, member: str, cls: type, fn: Callable[..., Any], *, is_property: bool) -> Documented:
    """A method or property; what a base of ours says of the same member holds here too."""
    above = [
        vars(base)[member].__doc__ or ""
        for base in cls.__mro__
        if base.__module__.startswith("crosscoders") and member in vars(base)
    ]
    parameters = parameters_of(fn, is_method=True)
    has_result = not is_property and _has_result(fn, owner=cls.__name__)
    return Documented(name, fn.__doc__ or "", tuple(above), parameters, has_result, raised_in(fn))


def _members(name: str, cls: type) -> Iterator[Documented]:
    for member_name, member in own_members(cls):
        fn = member.fget if isinstance(member, property) else callable_of(member)
        if fn is not None:
            is_property = isinstance(member, property)
            yield _of_member(f"{name}.{member_name}", member_name, cls, fn, is_property=is_property)


def documented() -> dict[str, Documented]:
    """Everything public that owes a docstring, each once, by the first name that it has."""
    found: dict[str, Documented] = {}
    seen: set[int] = set()
    for module_name, module in public_modules().items():
        for name in module.__all__:
            value, full = getattr(module, name), f"{module_name}.{name}"
            if id(value) in seen:
                continue
            seen.add(id(value))
            if inspect.isclass(value):
                found |= {each.name: each for each in (_of_class(full, value), *_members(full, value))}
            elif inspect.isfunction(inspect.unwrap(value)):
                has_result, raises = _has_result(value), raised_in(value)
                parameters = parameters_of(value, is_method=False)
                found[full] = Documented(full, value.__doc__ or "", (), parameters, has_result, raises)
    return found
