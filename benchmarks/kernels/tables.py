"""The generated part of docs/performance.md: tables from the CSV files, nothing typed by hand."""

import re
from collections.abc import Sequence

from benchmarks.kernels.problem import Shape
from benchmarks.kernels.process import ROOT
from benchmarks.kernels.results import RESULTS, Row, latest_run, read_rows
from benchmarks.kernels.roofline import bandwidth, floor_ms, gemm_flops, kernel_floor_ms, optimizer_bytes

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
PRECISIONS = ("float32", "bfloat16")
_OURS = "crosscoders"


def write_page() -> None:
    """Replace what stands between the markers of the page by the tables of the newest runs."""
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), generated()), encoding="utf-8")


def generated() -> str:
    """The tables of every results file."""
    texts = [render(read_rows(path)) for path in sorted(RESULTS.glob("*.csv"))]
    return "\n".join(texts) if texts else "No run is recorded yet.\n"


def with_tables(page: str, tables: str) -> str:
    """The page with other tables between its markers.

    Raises:
        ValueError: A marker is missing or repeated.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page needs one {BEGIN} and one {END}.")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables}\n{END}{rest.split(END)[1]}"


def render(rows: Sequence[Row]) -> str:
    """Markdown of the newest run among the rows."""
    rows = latest_run(rows)
    if not rows:
        return "No run is recorded yet.\n"
    sections = [_heading(rows)]
    groups = _groups(rows)
    for base in dict.fromkeys(_without_k(shape) for shape, _ in groups):
        shapes = [(shape, op) for shape, op in groups if _without_k(shape) == base]
        if len({shape for shape, _ in shapes}) > 1:
            sections.append(_sweep_table(rows, [shape for shape, _ in shapes]))
        else:
            sections += [_step_table(rows, shape, op) for shape, op in shapes]
    for level, title in (
        ("op", "Pieces of the step"),
        ("kernel", "Kernels within the step"),
        ("end_to_end", "Training on the bundled pair as the demo does"),
    ):
        found = dict.fromkeys(
            (row.shape, row.note) for row in rows if (row.level, row.metric) == (level, "time")
        )
        sections += [_op_table(rows, *key, level=level, title=title) for key in found]
    return "\n".join(section for section in sections if section)


def _groups(rows: Sequence[Row]) -> list[tuple[str, str]]:
    found = {(row.shape, row.op): None for row in rows if row.level == "step"}
    return list(found)


def _heading(rows: Sequence[Row]) -> str:
    first = rows[0]
    torch_versions = sorted({row.torch_version for row in rows if row.torch_version})
    place = first.device if first.device != "cpu" else f"{first.cpu_model}, {first.threads} threads"
    errors = ", ".join(
        f"{max(values):.1e} in {precision}"
        for precision in PRECISIONS
        if (
            values := [
                row.median
                for row in rows
                if row.level == "gate"
                and row.metric == "loss error"
                and row.precision == precision
                and row.median is not None
            ]
        )
    )
    states = dict.fromkeys(row.note for row in rows if row.level == "machine" and row.note)
    lines = [
        f"### {place}",
        "",
        f"Run of {first.timestamp[:10]}, commit {first.commit}, torch {', '.join(torch_versions)}. Medians, "
        f"in brackets the 20th and 80th percentiles. Largest relative error of a loss against float64 in the "
        f"first steps: {errors or 'not measured'}.",
        "",
        *(f"- {state}" for state in states),
        *([""] if states else []),
    ]
    return "\n".join(lines)


def _step_table(rows: Sequence[Row], shape: str, op: str) -> str:
    mine = [
        row for row in rows if row.shape == shape and row.level in ("step", "memory", "gate") and row.op == op
    ]
    names = list(dict.fromkeys(row.implementation for row in mine))
    has_memory = any(row.level == "memory" for row in mine)
    columns = [p for p in PRECISIONS if any(row.precision == p for row in mine)]
    header = ["", *(f"{p}, ms | times ours" for p in columns), *(f"{p}, MB" for p in columns if has_memory)]
    lines = [f"**{op}**, {shape}.{_skew_text(rows, shape)}", "", f"| {' | '.join(header)} |"]
    lines.append("|" + "---|" * sum(cell.count("|") + 1 for cell in header))
    for name in names:
        cells = [_time_cells(mine, name, precision) for precision in columns]
        cells += [_memory_cell(mine, name, precision) for precision in columns if has_memory]
        lines.append(f"| {_label(mine, name)} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_floor_lines(rows, shape, op, columns), *_notes(mine), ""])


def _label(rows: Sequence[Row], name: str) -> str:
    versions = [row.version for row in rows if row.implementation == name and row.version]
    return f"{name} {versions[0]}" if versions else name


def _time_cells(rows: Sequence[Row], name: str, precision: str) -> str:
    row, ours = _time(rows, name, precision), _ours(rows, precision)
    if row is None or row.median is None:
        return "n/a |" if _status(rows, name, precision) else "|"
    ratio = f"{row.median / ours:.2f}" if ours else ""
    return f"{_ms(row.median)} ({_ms(row.p20 or 0.0)}-{_ms(row.p80 or 0.0)}) | {ratio}"


def _memory_cell(rows: Sequence[Row], name: str, precision: str) -> str:
    found = [
        row.median
        for row in rows
        if row.level == "memory" and (row.implementation, row.precision) == (name, precision)
    ]
    return f"{found[0]:.0f}" if found and found[0] is not None else ""


def _time(rows: Sequence[Row], name: str, precision: str) -> Row | None:
    wanted = ("step", "time", name, precision)
    found = [row for row in rows if (row.level, row.metric, row.implementation, row.precision) == wanted]
    return found[0] if found else None


def _ours(rows: Sequence[Row], precision: str) -> float | None:
    """Time of the first of our entries: the default on CPU, Triton on CUDA."""
    names = [row.implementation for row in rows if row.implementation.startswith(_OURS)]
    row = _time(rows, names[0], precision) if names else None
    return row.median if row else None


def _status(rows: Sequence[Row], name: str, precision: str) -> Row | None:
    wanted = ("status", name, precision)
    found = [row for row in rows if (row.metric, row.implementation, row.precision) == wanted]
    return found[0] if found else None


def _floor_lines(rows: Sequence[Row], shape: str, op: str, columns: Sequence[str]) -> list[str]:
    """Roofline of the shape, and how far above it our step is."""
    machine = _machine(rows, shape, op)
    if not machine:
        return []
    sizes, speed = parse_shape(shape), bandwidth(machine)
    mine = [row for row in rows if row.shape == shape and row.op == op]
    lines = [
        "",
        f"Memory bandwidth {speed / 1e9:.1f} GB/s (best of copy, triad and update); Adam must move "
        f"{optimizer_bytes(sizes) / 1e6:.0f} MB, which takes {optimizer_bytes(sizes) / speed * 1e3:.1f} ms.",
        "",
        "| | encode GEMM, ms | GFLOP/s | floor, ms | ours / floor |",
        "|---|---|---|---|---|",
    ]
    for precision in columns:
        gemm = machine[f"encode GEMM {precision}"]
        floor = floor_ms(sizes, gemm_ms=gemm, bytes_per_second=speed)
        ours = _ours(mine, precision)
        ratio = f"{ours / floor:.2f}" if ours else "n/a"
        flops = gemm_flops(sizes) / gemm / 1e6
        lines.append(f"| {precision} | {_ms(gemm)} | {flops:.0f} | {_ms(floor)} | {ratio} |")
    return lines


def _notes(rows: Sequence[Row]) -> list[str]:
    """Variants and reasons for n/a, each once."""
    lines: dict[str, None] = {}
    for row in rows:
        if row.level == "gate" and row.note:
            lines[f"- {row.implementation}: {row.note}."] = None
        if row.metric == "status":
            lines[f"- {row.implementation}, {row.precision}: n/a: {row.note}."] = None
    return ["", *lines] if lines else []


def _skew_text(rows: Sequence[Row], shape: str) -> str:
    skew = {row.metric: row.median for row in rows if row.level == "data" and row.shape == shape}
    if any(skew.get(name) is None for name in ("touched", "hottest", "gini", "sigma_log10")):
        return ""
    return (
        f" Latents: {skew['touched']:.0%} fire in a batch, the hottest on {skew['hottest']:.0%} of tokens, "
        f"Gini {skew['gini']:.2f}, sigma of log10 of the rates {skew['sigma_log10']:.2f}."
    )


def _sweep_table(rows: Sequence[Row], shapes: Sequence[str]) -> str:
    """Times over k."""
    steps = [row for row in rows if row.shape in shapes and row.level == "step"]
    timed = [row for row in steps if row.metric == "time"]
    columns = list(dict.fromkeys((row.implementation, row.precision) for row in timed))
    lines = [
        f"**{steps[0].op}** over k, {_without_k(shapes[0])}, ms.",
        "",
        f"| k | {' | '.join(f'{name}, {precision}' for name, precision in columns)} |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for shape in dict.fromkeys(shapes):
        found = [_time([row for row in timed if row.shape == shape], *column) for column in columns]
        cells = [_ms(row.median) if row and row.median is not None else "" for row in found]
        lines.append(f"| {parse_shape(shape).k} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_notes(steps), ""])


def _op_table(rows: Sequence[Row], shape: str, case: str, *, level: str, title: str) -> str:
    """Times of single pieces, and their part of the roofline where bytes were counted."""
    of_level = [row for row in rows if row.shape == shape and row.level == level]
    mine = [row for row in of_level if row.metric == "time" and row.note == case]
    columns = list(dict.fromkeys((row.implementation, row.precision) for row in mine))
    machine, sizes = _machine(rows, shape, case), parse_shape(shape)
    header = [f"{name}, {precision}" for name, precision in columns]
    has_floor = any(kernel_floor_ms(row.op, sizes, loop_ms=machine) for row in mine)
    header += ["of roofline"] if has_floor else []
    lines = [
        f"**{title}**, {shape}, ms.",
        "",
        f"| | {' | '.join(header)} |",
        "|" + "---|" * (len(header) + 1),
    ]
    for op in dict.fromkeys(row.op for row in mine):
        times = [_op_time(mine, op, column) for column in columns]
        floor, best = kernel_floor_ms(op, sizes, loop_ms=machine), min((t for t in times if t), default=None)
        cells = [_ms(t) if t else "" for t in times]
        cells += [f"{floor / best:.0%}" if floor and best else ""] if has_floor else []
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return "\n".join([*lines, *_notes(of_level), ""])


def _op_time(rows: Sequence[Row], op: str, column: tuple[str, str]) -> float | None:
    found = [row.median for row in rows if row.op == op and (row.implementation, row.precision) == column]
    return found[-1] if found else None


def _machine(rows: Sequence[Row], shape: str, case: str) -> dict[str, float]:
    """Milliseconds of the machine's own loops and products, from the same rounds as this shape and case."""
    return {
        row.op: row.median
        for row in rows
        if (row.level, row.metric, row.shape, row.note) == ("roofline", "time", shape, case)
        and row.median is not None
    }


def parse_shape(label: str) -> Shape:
    """The shape that wrote this label.

    Raises:
        ValueError: The text is no label.
    """
    found = re.fullmatch(r"S=(\d+) d=(\d+) F=(\d+) B=(\d+) k=(\d+)", label)
    if found is None:
        raise ValueError(f"{label!r} is no shape; expected 'S=2 d=256 F=16384 B=2048 k=32'.")
    n_sources, d_model, n_latents, batch, k = map(int, found.groups())
    return Shape(n_sources=n_sources, d_model=d_model, n_latents=n_latents, batch=batch, k=k)


def _without_k(label: str) -> str:
    return label.rsplit(" ", 1)[0]


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
