"""Checks what a built wheel holds: everything that belongs, nothing else, and how large it is.

Usage: python .ci/check_wheel.py dist
"""

import re
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "crosscoders"
ZOO_MODEL = "crosscoders/zoo/tiny_reasoner"
REPORT_APP = "crosscoders/report/site/assets"
REQUIRED = {
    "crosscoders/__init__.py",
    "crosscoders/cli.py",
    "crosscoders/py.typed",
    "crosscoders/reasoning/lexicon.toml",
    *(f"{REPORT_APP}/{name}" for name in ("index.html", "style.css", "data.js", "main.js")),
    *(f"{ZOO_MODEL}/{model}/model.safetensors" for model in ("base", "distilled", "null")),
    *(f"{ZOO_MODEL}/{model}/config.json" for model in ("base", "distilled", "null")),
}
ALLOWED = re.compile(
    r"crosscoders/([\w/]+/)?\w+\.py|crosscoders/py\.typed|crosscoders/reasoning/lexicon\.toml"
    r"|crosscoders/report/site/assets/\w+\.(html|css|js)"
    r"|crosscoders/zoo/[\w/.-]+\.(safetensors|json|jinja|md|txt)"
    r"|crosscoders-[\w.]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt|licenses/LICENSE)"
)
NEVER_EMPTY = (ZOO_MODEL, REPORT_APP)
MAX_ZOO_BYTES = 10 * 1024 * 1024
MAX_WHEEL_BYTES = 12 * 1024 * 1024


def source_files() -> set[str]:
    """The Python files of the checkout and the report's page, as the wheel should name them."""
    paths = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / REPORT_APP).glob("*.*")]
    return {path.relative_to(PACKAGE.parent).as_posix() for path in paths}


def faults_of(sizes: dict[str, int], *, wheel_bytes: int) -> list[str]:
    """What is wrong with a wheel, given the size of each file in it."""
    zoo_bytes = sum(size for name, size in sizes.items() if name.startswith(ZOO_MODEL))
    ours = {name for name in sizes if name.endswith(".py") or name.startswith(REPORT_APP)}
    faults = [f"missing: {name}" for name in sorted((REQUIRED | source_files()) - sizes.keys())]
    faults += [f"surprise: {name}" for name in sorted(sizes) if not ALLOWED.fullmatch(name)]
    faults += [f"not in the checkout: {name}" for name in sorted(ours - source_files())]
    faults += [f"empty: {name}" for name in sorted(sizes) if not sizes[name] and name.startswith(NEVER_EMPTY)]
    if zoo_bytes > MAX_ZOO_BYTES:
        faults.append(f"{ZOO_MODEL} takes {zoo_bytes} bytes, at most {MAX_ZOO_BYTES} are allowed")
    if wheel_bytes > MAX_WHEEL_BYTES:
        faults.append(f"the wheel takes {wheel_bytes} bytes, at most {MAX_WHEEL_BYTES} are allowed")
    return faults


def main() -> None:
    """Print the faults and exit 1, or print one line that says how many files and bytes there are."""
    wheels = sorted(Path(sys.argv[1]).glob("*.whl"))
    if len(wheels) != 1:
        sys.exit(f"expected one wheel in {sys.argv[1]}, found {[wheel.name for wheel in wheels]}")
    with zipfile.ZipFile(wheels[0]) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    wheel_bytes = wheels[0].stat().st_size
    if faults := faults_of(sizes, wheel_bytes=wheel_bytes):
        sys.exit("\n".join([f"{wheels[0].name}:", *faults]))
    print(f"{wheels[0].name}: {len(sizes)} files, {wheel_bytes / 1e6:.1f} MB, as it should be")


if __name__ == "__main__":
    main()
