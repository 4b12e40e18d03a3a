"""Imports point down the layers, heavy packages load late, and no cycle exists."""

import ast
import sys

import pytest

from tests.repo.source_tree import Import, imports_of, read_modules

# A unit is a module or folder directly under crosscoders. A line is a layer and may import every line above
# it. Inside a line a unit may import those that stand before it in the same chain ("a < b": b imports a).
LAYERS: list[list[str]] = [
    ["errors < _typing < _version < _io < _specs"],
    ["sources < metrics", "bootstrap", "kernels", "parallel", "provenance"],
    ["activation_fns", "structures"],
    [
        "artifact < crosscoder < losses",
        "models < harvest < token_batches < row_stream < store < buffer_checks < buffer < prefetch",
    ],
    ["evaluation", "geometry", "hub", "reasoning < latents < interventions"],
    ["training"],
    ["diffing"],
    ["zoo", "report"],
    ["pipeline < experiments < cli", "testing"],
    [""],  # crosscoders/__init__.py
]
ALWAYS = {"torch", "numpy", "jaxtyping", "safetensors", "tqdm"}
# package -> (where it may be imported, must that be inside a function)
RESTRICTED = {
    "beartype": (("_typing",), True),
    "transformers": (("models", "zoo"), True),
    "transformer_lens": (("models", "zoo"), True),
    "tokenizers": (("models", "zoo"), True),
    "huggingface_hub": (("models", "hub"), True),
    "accelerate": (("models",), True),
    "datasets": (("models",), True),
    "jinja2": (("models",), True),
    "yaml": (("hub",), True),
    "matplotlib": (("report",), True),
    "triton": (("kernels.triton",), False),
}
TREES = read_modules()


def unit_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def allowed_units(unit: str) -> set[str]:
    """The units that this one may import."""
    below: set[str] = set()
    for layer in LAYERS:
        chains = [chain.split(" < ") for chain in layer]
        if any(unit in chain for chain in chains):
            same = {u for chain in chains if unit in chain for u in chain[: chain.index(unit)]}
            return below | same | {unit}
        below |= {u for chain in chains for u in chain}
    raise ValueError(f"crosscoders.{unit} stands in no layer: add it to LAYERS of {__file__}")


def imported_modules(entry: Import) -> set[str]:
    """The package's own modules that one import statement loads."""
    if not entry.target.startswith("crosscoders"):
        return set()
    joined = {f"{entry.target}.{name}" for name in entry.names}
    return (joined & TREES.keys()) or {entry.target}


def layer_faults(module: str, tree: ast.AST) -> list[str]:
    """Imports of one module that point up or sideways, or that name the package itself."""
    allowed, faults = allowed_units(unit_of(module)), []
    for entry in imports_of(tree):
        if entry.is_relative:
            faults.append(f"{module}:{entry.line} imports relatively; write the full module name")
        if entry.target == "crosscoders":
            faults.append(f"{module}:{entry.line} imports from the package itself, not from a module of it")
        for target in imported_modules(entry) - {"crosscoders"}:
            if unit_of(target) not in allowed:
                faults.append(f"{module}:{entry.line} imports {target}, which is not below it")
    return faults


def third_party_faults(module: str, tree: ast.AST) -> list[str]:
    """Imports of packages that this module must not, or must not yet, load."""
    inner, faults = module.removeprefix("crosscoders").lstrip("."), []
    for entry in imports_of(tree):
        if entry.is_relative:
            continue
        top = entry.target.split(".")[0]
        if entry.runs == "in a call" and (top not in RESTRICTED or not RESTRICTED[top][1]):
            faults.append(f"{module}:{entry.line} imports {entry.target} inside a function")
        if top in sys.stdlib_module_names or top in ALWAYS or top == "crosscoders":
            continue
        homes, lazily = RESTRICTED.get(top, ((), False))
        if not inner.startswith(homes or "?"):
            faults.append(f"{module}:{entry.line} imports {top}, allowed in {homes or 'no module'}")
        elif lazily and entry.runs == "at import":
            faults.append(f"{module}:{entry.line} imports {top} at the top; it must load on first use")
    return faults


def find_cycle(graph: dict[str, set[str]]) -> list[str]:
    """One import cycle, or an empty list (depth-first; `path` is the current chain)."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if cycle := visit(target, [*path, module]):
                return cycle
        done.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), [])


@pytest.mark.parametrize("module", sorted(TREES))
def test_imports_point_down_the_layers(module: str) -> None:
    assert layer_faults(module, TREES[module]) == []


@pytest.mark.parametrize("module", sorted(TREES))
def test_third_party_packages_load_where_and_when_they_may(module: str) -> None:
    assert third_party_faults(module, TREES[module]) == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module: {t for e in imports_of(tree) if e.runs == "at import" for t in imported_modules(e)} - {module}
        for module, tree in TREES.items()
    }
    assert find_cycle(graph) == []


@pytest.mark.parametrize("module", sorted(TREES))
def test_annotations_are_never_postponed(module: str) -> None:
    """Shape checks read annotations at run time."""
    assert not [e for e in imports_of(TREES[module]) if e.target == "__future__"]


def test_the_guard_sees_each_kind_of_fault() -> None:
    def faults(module: str, source: str) -> int:
        tree = ast.parse(source)
        return len(layer_faults(module, tree)) + len(third_party_faults(module, tree))

    assert faults("crosscoders.buffer", "from crosscoders.harvest import x") == 0
    assert faults("crosscoders.harvest", "from crosscoders.buffer import x") == 1
    assert faults("crosscoders.crosscoder", "from crosscoders.harvest import x") == 1
    assert faults("crosscoders.sources", "import crosscoders.training.trainer") == 1
    assert faults("crosscoders.losses", "from crosscoders import metrics") == 1
    assert faults("crosscoders.losses", "from .metrics import l0") == 1
    assert faults("crosscoders.models.base", "import transformers") == 1
    assert faults("crosscoders.models.base", "def f():\n    import transformers") == 0
    assert faults("crosscoders.harvest", "def f():\n    import transformers") == 1
    assert faults("crosscoders.cli", "def f():\n    import json") == 1
    assert faults("crosscoders.kernels.reference", "import triton") == 1
    assert faults("crosscoders.losses", "import scipy") == 1
    with pytest.raises(ValueError, match="stands in no layer"):
        faults("crosscoders.unheard_of", "")
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
