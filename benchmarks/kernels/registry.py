"""The implementations: which module builds each, in which environment, with which option."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One implementation.

    Args:
        name: As tables show it.
        module: Module under `benchmarks.kernels` with `build`.
        distribution: Installed distribution whose version is recorded.
        environment: Folder under `.venv-bench`, or empty for the coordinator's own environment.
        option: Passed to `build`.
        precisions: Columns it runs in; none where it has no precision of its own.
        has_memory_row: Whether its memory says something; compiling takes more than the step.
        level: What its times are in the CSV files: "step", "op", "end_to_end" or "roofline".
    """

    name: str
    module: str
    distribution: str
    environment: str = ""
    option: str = ""
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    has_memory_row: bool = True
    level: str = "step"


OURS = Entry(name="crosscoders", module="peers.ours", distribution="crosscoders", option="auto")
OURS_DENSE = Entry(name="crosscoders, dense", module="peers.ours", distribution="crosscoders", option="dense")
OURS_TRITON = Entry(
    name="crosscoders, triton", module="peers.ours", distribution="crosscoders", option="triton"
)
OURS_SPARSE = Entry(name="crosscoders, sparse", module="peers.ours", distribution="crosscoders", option="cpu")
PLAIN = Entry(name="plain PyTorch", module="peers.plain", distribution="torch", option="eager")
COMPILED = Entry(
    name="plain PyTorch, compiled",
    module="peers.plain",
    distribution="torch",
    option="compile",
    has_memory_row=False,
)
PEERS = (
    Entry(
        name="eai-sparsify",
        module="peers.sparsify_peer",
        distribution="eai-sparsify",
        environment="eai-sparsify",
        option="same",
    ),
    Entry(
        name="eai-sparsify, default",
        module="peers.sparsify_peer",
        distribution="eai-sparsify",
        environment="eai-sparsify",
        option="default",
    ),
    Entry(
        name="dictionary-learning",
        module="peers.dictionary_learning_peer",
        distribution="dictionary-learning",
        environment="dictionary-learning",
    ),
    Entry(
        name="sae-lens",
        module="peers.sae_lens_peer",
        distribution="sae-lens",
        environment="sae-lens",
        option="dense",
    ),
    Entry(
        name="sae-lens, sparse",
        module="peers.sae_lens_peer",
        distribution="sae-lens",
        environment="sae-lens",
        option="sparse",
        precisions=("float32",),
    ),
    Entry(
        name="llamascopium",
        module="peers.llamascopium_peer",
        distribution="llamascopium",
        environment="llamascopium",
    ),
)
MACHINE = Entry(
    name="machine",
    module="machine",
    distribution="torch",
    precisions=(),
    has_memory_row=False,
    level="roofline",
)
OPS = tuple(
    Entry(
        name=f"crosscoders, {option}",
        module="ops",
        distribution="torch",
        option=option,
        has_memory_row=False,
        level="op",
    )
    for option in ("cpu", "dense")
)
END_TO_END = tuple(
    Entry(
        name=f"crosscoders, {option}",
        module="end_to_end",
        distribution="torch",
        option=option,
        has_memory_row=False,
        level="end_to_end",
    )
    for option in ("auto", "reference")
)
OPS_TRITON = Entry(
    name="crosscoders, triton",
    module="ops_triton",
    distribution="torch",
    precisions=("bfloat16",),
    has_memory_row=False,
    level="op",
)
OPS_PLAIN = Entry(
    name="plain PyTorch", module="ops_plain", distribution="torch", has_memory_row=False, level="op"
)
