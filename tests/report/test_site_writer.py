"""A report is whole or not there, replaces only its own kind, and holds nothing that could run."""

import re
import shutil
import time
from importlib.resources import files
from pathlib import Path

import pytest

from crosscoders.report.site.writer import Site, write_site
from tests.report.site_cases import changed, data_of, files_of
from tests.report.synthetic_site import synthetic_site

LINE = re.compile(rb'addData\("[a-z0-9_/]+", "[A-Za-z0-9+/]+=*"\);\n')


@pytest.fixture
def figures(tmp_path: Path) -> Path:
    (tmp_path / "drawn").mkdir()
    return tmp_path / "drawn"


@pytest.fixture
def site(figures: Path) -> Site:
    return small(figures)


def small(figures: Path | None = None, **changes: object) -> Site:
    return synthetic_site(
        **{"n_latents": 70, "n_text_tokens": 1_000, "n_strings": 120, "figures": figures, **changes}
    )


def data_names(folder: Path) -> set[str]:
    return {name for name in files_of(folder) if name.startswith("data/")}


def test_a_report_has_the_page_its_parts_and_nothing_else(site: Site, tmp_path: Path) -> None:
    write_site(tmp_path / "a" / "r", site)
    names = set(files_of(tmp_path / "a" / "r"))
    data = {
        f"data/{name}.js"
        for name in ("overview", "table", "text", "experiments", "latents/000", "latents/001")
    }
    shown = {"figures/norms/nrn.png", "figures/norms/cosine.png"}
    assets = {path.name for path in (files("crosscoders.report.site") / "assets").iterdir()}
    app = {f"app/{name}" for name in assets - {"index.html"}}
    assert names == {"index.html", "report.json"} | data | shown | app


def test_figures_and_assets_are_copied_as_they_are(site: Site, figures: Path, tmp_path: Path) -> None:
    write_site(tmp_path / "r", site)
    found = files_of(tmp_path / "r")
    assert found["figures/norms/nrn.png"] == (figures / "nrn.png").read_bytes()
    for asset in (files("crosscoders.report.site") / "assets").iterdir():
        name = asset.name if asset.name == "index.html" else f"app/{asset.name}"
        assert found[name] == asset.read_bytes()


def test_every_data_file_is_one_harmless_line(site: Site, tmp_path: Path) -> None:
    write_site(tmp_path / "r", site)
    for name, raw in files_of(tmp_path / "r").items():
        if name.startswith("data/"):
            assert LINE.fullmatch(raw), name
            assert raw.startswith(b'addData("%s", ' % name[5:-3].encode())
            assert b"</script" not in raw.lower()


def test_the_page_itself_knows_nothing_of_the_data(tmp_path: Path) -> None:
    for name, changes in {"a": {"seed": 0}, "b": {"seed": 1, "is_hostile": False, "n_latents": 3}}.items():
        write_site(tmp_path / name, small(**changes))
    first, second = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    apart = {name for name in first if first[name] != second.get(name)}
    assert apart == data_names(tmp_path / "a")


def test_overview_and_experiments_come_back(site: Site, tmp_path: Path) -> None:
    write_site(tmp_path / "r", site)
    overview, _ = data_of(tmp_path / "r", "overview")
    assert overview["title"] == site.overview["title"]
    assert [row["token_means_difference"] for row in overview["reconstruction"]] == [None] * 3
    assert data_of(tmp_path / "r", "experiments")[0] == site.experiments


def test_equal_reports_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_site(tmp_path / name, small())
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_new_report_replaces_the_old_one_wholly(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write_site(folder, site)
    (folder / "data" / "latents" / "999.js").write_bytes(b"stale")
    fewer = small(n_latents=10)
    write_site(folder, fewer)
    write_site(tmp_path / "fresh", fewer)
    assert files_of(folder) == files_of(tmp_path / "fresh")
    assert {path.name for path in tmp_path.iterdir()} == {"r", "fresh", "drawn"}


def test_a_failure_in_the_middle_leaves_the_old_report_whole(
    site: Site, figures: Path, tmp_path: Path
) -> None:
    """A figure vanishes after the data were written."""
    folder = tmp_path / "r"
    write_site(folder, small())
    before = files_of(folder)
    (figures / "cosine.png").unlink()
    for target in (folder, tmp_path / "new"):
        with pytest.raises(FileNotFoundError, match=r"cosine\.png"):
            write_site(target, site)
    assert files_of(folder) == before
    assert {path.name for path in tmp_path.iterdir()} == {"r", "drawn"}


def test_data_that_cannot_be_written_leave_no_folder(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Site\.overview\.x"):
        write_site(tmp_path / "r", changed(site, overview={"x": float("inf")}))
    assert {path.name for path in tmp_path.iterdir()} == {"drawn"}


def test_a_folder_of_someone_else_is_refused(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    write_site(folder, site)  # empty: nothing is lost
    for name, content in (("index.html", "mine"), ("report.json", '{"mine": 1}'), ("report.json", "[")):
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(FileExistsError, match="not written by this library"):
            write_site(folder, site)
        assert files_of(folder) == {name: content.encode()}


def test_another_folder_of_this_library_is_no_report(site: Site, tmp_path: Path) -> None:
    """A run or a crosscoder says so in a file of another name."""
    (tmp_path / "manifest.json").write_text('{"format": "crosscoders"}')
    (tmp_path / "config.json").write_text('{"format": "crosscoders"}')
    with pytest.raises(FileExistsError, match=r"no report\.json"):
        write_site(tmp_path, site)


def test_a_linked_folder_stays_a_link(site: Site, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "r").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        write_site(tmp_path / "r", site)
    assert (tmp_path / "r").is_symlink()
    assert (tmp_path / "elsewhere" / "index.html").is_file()


@pytest.mark.parametrize("sources", [("only",), ("a", "b", "c"), ("a b", "<script>", "\u202e", "x/y")])
def test_any_number_of_sources(tmp_path: Path, sources: tuple[str, ...]) -> None:
    write_site(tmp_path / "r", small(sources=sources))
    content, arrays = data_of(tmp_path / "r", "latents/000")
    assert content["sources"] == list(sources)
    assert arrays["token_share"].shape[1] == len(sources)
    assert arrays["lens_top"].shape == (64, len(sources), 8)
    names = [column["name"] for column in data_of(tmp_path / "r", "table")[0]["columns"]]
    assert [f"norm_l2/{name}" for name in sources] == [name for name in names if name.startswith("norm_l2/")]


def test_a_report_without_models_has_its_evidence(site: Site, tmp_path: Path) -> None:
    assert site.pages is not None
    bare = dict.fromkeys(("snippets", "histogram", "max_activation", "lens_top", "lens_top_value"))
    pages = changed(site.pages, **bare, lens_bottom=None, lens_bottom_value=None)
    write_site(tmp_path / "r", changed(site, text=None, pages=pages))
    assert "data/text.js" not in files_of(tmp_path / "r")
    content, arrays = data_of(tmp_path / "r", "latents/001")
    assert set(arrays) == {"nearest", "nearest_cosine", "evidence", "enrichment"}
    assert content["evidence"] == list(site.pages.evidence.reason[64:])


def test_a_report_of_the_table_alone(site: Site, tmp_path: Path) -> None:
    write_site(tmp_path / "r", changed(site, text=None, pages=None, figures={}))
    assert data_names(tmp_path / "r") == {f"data/{name}.js" for name in ("overview", "table", "experiments")}


@pytest.mark.slow
def test_a_report_of_32768_latents_is_small_and_quick(tmp_path: Path) -> None:
    site = synthetic_site(32_768, n_text_tokens=100_000, n_strings=151_000)
    began = time.process_time()  # of this process, so that others at work beside it do not count
    write_site(tmp_path / "r", site)
    seconds = time.process_time() - began
    sizes = {name: len(raw) for name, raw in files_of(tmp_path / "r").items()}
    assert len([name for name in sizes if name.startswith("data/latents/")]) == 512
    assert sum(sizes.values()) < 60e6
    assert sizes["data/table.js"] < 5e6
    assert max(size for name, size in sizes.items() if "latents" in name) < 200e3
    assert seconds < 20
