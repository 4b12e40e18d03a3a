"""The model card: what a reader needs to load a crosscoder and to judge what it was measured on."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from crosscoders.hub.names import is_repo_id

_MARK = re.compile(r"\n<!-- card written by crosscoders, sha256 ([0-9a-f]{64}) -->\n\Z")
_FRONT = re.compile(r"\A---\n(.*?)\n---\n?(.*)\Z", re.DOTALL)
_LIMITS = """\
- Explained variance, L0 and the like were measured by whoever pushed this, on their text; other text gives
  other numbers.
- A decoder that is large in one model only is a lead, not a finding: sparsity penalties shrink shared latents
  to one side, and chance makes one-sided latents too. Compare with a null before calling a latent specific to
  a model.
- The scales belong to these models at these revisions and hook names. Other activations give other latents,
  without any error message.
- A latent's meaning is not part of this file; names given to latents are hypotheses."""


def model_card(
    header: Mapping[str, Any],
    *,
    repo_id: str,
    subfolder: str = "",
    evaluation: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """The README.md of an artifact, with YAML metadata for the Hub.

    Args:
        header: Content of its `config.json`.
        repo_id: Where it will lie.
        subfolder: Folder inside the repository.
        evaluation: Measures as `evaluation.json` of a run has them, or any nested dict of numbers.
        metadata: Entries of an older card to keep, such as the license; ours come first.

    Returns:
        The text. Its last line carries the SHA-256 of the rest, by which `is_unedited` knows it.
    """
    crosscoder = header["crosscoder"]
    parts = [
        _front_matter(crosscoder["sources"], metadata or {}),
        _summary(header, title=repo_id + (f"/{subfolder}" if subfolder else "")),
        "## Sources\n\n" + _sources_table(crosscoder["sources"]),
        "## Use\n\n" + _usage(crosscoder["sources"], repo_id=repo_id, subfolder=subfolder),
        *_evaluation_parts(evaluation or {}),
        *([_training(header["training_summary"])] if header["training_summary"] else []),
        "## Limits\n\n" + _LIMITS,
        "## Files\n\n" + _files_table(header["files"]),
    ]
    text = "\n\n".join(parts) + "\n"
    return f"{text}\n<!-- card written by crosscoders, sha256 {_hash(text)} -->\n"


def is_unedited(card: str) -> bool:
    """Whether `model_card` wrote this text and nobody changed it."""
    mark = _MARK.search(card)
    return mark is not None and _hash(card[: mark.start()]) == mark[1]


def metadata_only(card: str) -> dict[str, Any] | None:
    """The YAML metadata of a card that holds nothing else, as a new repository's does; None for another."""
    import yaml

    front = _FRONT.match(card)
    if front is None or front[2].strip():
        return None if card.strip() else {}
    try:
        content = yaml.safe_load(front[1])
    except yaml.YAMLError:
        return None
    return content if isinstance(content, dict) else None


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _front_matter(sources: Sequence[Mapping[str, Any]], kept: Mapping[str, Any]) -> str:
    import yaml

    models = sorted({source["model_id"] for source in sources if is_repo_id(source["model_id"])})
    several = len({source["model_id"] for source in sources}) > 1
    tags = ["crosscoder", "sparse-dictionary", "interpretability", *(["model-diffing"] if several else [])]
    ours: dict[str, Any] = {"library_name": "crosscoders", "tags": tags}
    if models:
        ours["base_model"] = models
    text = yaml.safe_dump({**kept, **ours}, sort_keys=False, allow_unicode=False)
    return f"---\n{text}---"


def _summary(header: Mapping[str, Any], *, title: str) -> str:
    crosscoder = header["crosscoder"]
    names = ", ".join(_code(source["name"]) for source in crosscoder["sources"])
    fn = crosscoder["activation_fn"]
    options = ", ".join(
        _plain(f"{key} = {value}") for key, value in fn.items() if key != "kind" and value is not None
    )
    version = _plain(header["library_version"])
    rows = [
        ["latents", f"{crosscoder['n_latents']:,}"],
        ["activation function", _code(fn["kind"]) + (f" ({options})" if options else "")],
        *([["threshold", f"{header['threshold']:.6g}"]] if "threshold" in header else []),
        ["scales", "folded into the weights" if crosscoder["is_folded"] else "kept beside the weights"],
        ["written by", f"crosscoders {version}, format {header['format_version']}"],
    ]
    intro = (
        f"A sparse crosscoder over the activations of {names}: one dictionary of latents, each with a "
        "decoder vector in each source. It is an artifact of the Python library `crosscoders`."
    )
    return f"# {_plain(title)}\n\n{intro}\n\n" + _table(["", ""], rows)


def _sources_table(sources: Sequence[Mapping[str, Any]]) -> str:
    head = ["source", "model", "revision", "hook name", "width", "scale", "tokenizer"]
    rows = [
        [
            _code(source["name"]),
            _model(source["model_id"]),
            _code((source["revision"] or "")[:12]),
            _code(source["hook_name"]),
            str(source["d_model"]),
            f"{source['scale']:.6g}",
            _code((source.get("tokenizer_fingerprint") or "")[:12]),
        ]
        for source in sources
    ]
    return (
        _table(head, rows)
        + "\n\nRaw activations times scale are what the encoder reads; the file has all digits."
    )


def _model(model_id: str) -> str:
    """A link for a repository; of a local folder only its name, since paths tell of machines and people."""
    if is_repo_id(model_id):
        return f"[{model_id}](https://huggingface.co/{model_id})"
    return _code(re.split(r"[\\/]", model_id.rstrip("\\/"))[-1])


def _usage(sources: Sequence[Mapping[str, Any]], *, repo_id: str, subfolder: str) -> str:
    inside = f", subfolder={json.dumps(subfolder)}" if subfolder else ""
    names = ", then ".join(_code(source["name"]) for source in sources)
    width = sum(source["d_model"] for source in sources)
    return (
        "```python\nimport crosscoders as cc\n\n"
        f'crosscoder = cc.from_pretrained("{repo_id}"{inside})  # revision="<commit>" pins it\n'
        f"latents = crosscoder.encode(activations)  # raw, [batch, {width}], side by side\n"
        "print(crosscoder.sources, crosscoder.origin)\n```\n\n"
        f"Order of the columns: {names}."
    )


def _evaluation_parts(evaluation: Mapping[str, Any]) -> list[str]:
    parts = []
    for title, content in evaluation.items():
        rows = content if isinstance(content, Mapping) else {"": {title: content}}
        if not all(isinstance(value, Mapping) for value in rows.values()):
            rows = {"": rows}
        flat = {name: dict(_flat(value)) for name, value in rows.items()}
        columns = list(dict.fromkeys(key for values in flat.values() for key in values))
        if columns:
            body = [
                [_plain(name), *(_number(values.get(key)) for key in columns)]
                for name, values in flat.items()
            ]
            head = ["text" if any(flat) else "", *map(_plain, columns)]
            parts.append(f"### {_plain(title)}\n\n" + _table(head, body))
    said = "As measured by whoever pushed this." if parts else "None was given."
    return [f"## Evaluation\n\n{said}", *parts]


def _training(summary: Mapping[str, Any]) -> str:
    return "## Training\n\n" + _table(
        ["", ""], [[_plain(key), _number(value)] for key, value in _flat(summary)]
    )


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        pairs += _flat(item, f"{name} ") if isinstance(item, Mapping) else [(name, item)]
    return [(name, item) for name, item in pairs if item is not None]


def _files_table(files: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[_code(name), f"{entry['bytes']:,}", _code(entry["sha256"])] for name, entry in files.items()]
    return _table(["file", "bytes", "SHA-256"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else _plain(f"{value:,}" if type(value) is int else str(value))


def _plain(text: str) -> str:
    """Text that neither breaks a table nor becomes markup."""
    flat = " ".join(str(text).split())
    return re.sub(r"([\\`*\[\]<>|#])", r"\\\1", flat)


def _code(text: str) -> str:
    flat = " ".join(text.split()).replace("`", "'").replace("|", "/")
    return f"`{flat}`" if flat else ""
