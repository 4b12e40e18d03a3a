"""What a report says comes back from its files: exactly, or to within the steps that it is stored in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from crosscoders.report.site.columns import Column, table_file
from crosscoders.report.site.text import TokenText, text_file
from crosscoders.report.site.writer import Site, write_site
from tests.report.site_cases import changed, data_of, read_latents
from tests.report.synthetic_site import synthetic_site

N = 150  # two whole files of latents and a part of one


@pytest.fixture(scope="module")
def site() -> Site:
    return synthetic_site(N, n_text_tokens=2_000, n_strings=300)


@pytest.fixture(scope="module")
def folder(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "report"
    write_site(folder, site)
    return folder


def same(got: np.ndarray, expected: torch.Tensor) -> bool:
    return np.array_equal(got, expected.numpy(), equal_nan=True)


def test_every_column_comes_back(site: Site, folder: Path) -> None:
    content, arrays = data_of(folder, "table")
    assert (content["n_latents"], content["n_tokens"]) == (N, site.n_tokens)
    assert [column["name"] for column in content["columns"]] == [column.name for column in site.columns]
    for said, column in zip(content["columns"], site.columns, strict=True):
        assert (said["label"], said["help"], said["kind"]) == (column.label, column.help, column.kind)
        assert (said["group"], said["shown"]) == (column.group, column.is_shown)
        if column.kind == "text":
            assert said["values"] == column.values
            assert column.name not in arrays
        elif column.kind == "choice":
            words = [*column.choices, *[None] * (255 - len(column.choices)), None]
            found = [words[at] for at in arrays[column.name]]
            assert found == [None if at < 0 else column.choices[at] for at in column.values]
        else:
            assert arrays[column.name].dtype == np.float32
            assert same(arrays[column.name], column.values)


def test_the_text_comes_back(site: Site, folder: Path) -> None:
    content, arrays = data_of(folder, "text")
    assert site.text is not None
    assert content["strings"] == site.text.strings
    assert {name: array.dtype for name, array in arrays.items()} == dict.fromkeys(arrays, np.uint32)
    for name in ("tokens", "token_ids", "row_start"):
        assert same(arrays[name], getattr(site.text, name))


def test_snippets_come_back_to_within_their_steps(site: Site, folder: Path) -> None:
    """Against a walk over the snippets one by one, on both sides."""
    assert site.pages is not None
    given, largest = site.pages.snippets, site.pages.max_activation
    assert given is not None
    assert largest is not None
    token, n_seen = 0, 0
    for latent, _, arrays, at in read_latents(folder):
        local = int(arrays["snippet_length"][: arrays["snippet_ptr"][at]].astype(int).sum())
        own = slice(int(given.ptr[latent]), int(given.ptr[latent + 1]))
        mine = slice(int(arrays["snippet_ptr"][at]), int(arrays["snippet_ptr"][at + 1]))
        for name in ("kind", "start", "length", "at"):
            assert same(arrays[f"snippet_{name}"][mine], getattr(given, name)[own])
        assert arrays["snippet_activation"][mine] == pytest.approx(given.activation[own].numpy(), rel=2**-13)
        n = int(given.length[own].sum())
        activation, share = given.token_activation[token : token + n], given.token_share[token : token + n]
        levels = arrays["token_activation"][local : local + n]
        assert ((levels > 0) == (activation > 0).numpy()).all()
        step = float(largest[latent]) / 255
        exact = np.maximum(activation.numpy(), np.where(levels == 1, step / 2, 0))
        assert np.abs(levels * step - exact).max(initial=0) <= step * 0.5001
        scale = float(share.abs().max()) if n else 0.0
        assert arrays["share_scale"][at] == np.float32(scale)
        stored = arrays["token_share"][local : local + n] * (scale / 127)
        assert np.abs(stored - share.numpy()).max(initial=0) <= scale / 254 * 1.0001
        token, n_seen = token + n, n_seen + mine.stop - mine.start
    assert token == len(given.token_activation)
    assert n_seen == len(given.kind)


def test_the_numbers_of_each_latent_come_back(site: Site, folder: Path) -> None:
    pages = site.pages
    assert pages is not None
    for latent, _, arrays, at in read_latents(folder):
        for name in ("histogram", "max_activation", "lens_top", "lens_bottom", "nearest"):
            assert same(arrays[name][at], getattr(pages, name)[latent]), name
        for name in ("lens_top_value", "lens_bottom_value", "nearest_cosine"):
            assert arrays[name][at] == pytest.approx(getattr(pages, name)[latent].numpy(), rel=2**-13), name


def test_the_evidence_comes_back(site: Site, folder: Path) -> None:
    pages = site.pages
    assert pages is not None
    evidence = pages.evidence
    assert evidence.values is not None
    assert evidence.enrichment is not None
    for latent, content, arrays, at in read_latents(folder):
        assert content["sources"] == list(pages.sources)
        assert content["evidence"][at] == evidence.reason[latent]
        assert content["evidence_columns"] == list(evidence.columns)
        assert content["enrichment_columns"] == list(evidence.enrichment_columns)
        assert same(arrays["evidence"][at], evidence.values[latent])
        steps = arrays["enrichment"][at].astype(float)
        rates = np.where(steps == 65535, np.nan, steps / 65534)
        expected = evidence.enrichment[latent].numpy()
        assert rates == pytest.approx(expected, abs=0.5001 / 65534, nan_ok=True)


def test_enrichment_that_is_no_rate_is_stored_as_it_is(site: Site, tmp_path: Path) -> None:
    assert site.pages is not None
    assert site.pages.evidence.enrichment is not None
    wide = site.pages.evidence.enrichment * 3
    pages = changed(site.pages, evidence=changed(site.pages.evidence, enrichment=wide))
    write_site(tmp_path / "r", changed(site, pages=pages))
    for latent, _, arrays, at in read_latents(tmp_path / "r"):
        assert same(arrays["enrichment"][at], wide[latent])


def test_steering_samples_stand_beside_their_latent(site: Site, folder: Path) -> None:
    assert site.pages is not None
    found = {}
    for _, content, _, at in read_latents(folder):
        found |= content.get("steering", {}) if at == 0 else {}
    assert {int(latent) for latent in found} == {0, 70}
    assert found == {str(latent): samples for latent, samples in site.pages.steering.items()}


def test_a_weak_token_is_stored_as_one_step_and_a_silent_one_as_none(site: Site, tmp_path: Path) -> None:
    assert site.pages is not None
    assert site.pages.snippets is not None
    weak = torch.full_like(site.pages.snippets.token_activation, 1e-9)
    weak[0] = 0
    pages = changed(site.pages, snippets=changed(site.pages.snippets, token_activation=weak))
    write_site(tmp_path / "r", changed(site, pages=pages))
    levels = data_of(tmp_path / "r", "latents/000")[1]["token_activation"]
    assert levels[0] == 0
    assert (levels[1:] == 1).all()


def test_undefined_maxima_stay_undefined(site: Site, tmp_path: Path) -> None:
    """A latent that never fired has no largest activation; its page holds no snippet."""
    assert site.pages is not None
    assert site.pages.max_activation is not None
    silent = site.pages.max_activation == 0
    assert bool(silent.any())
    undefined = site.pages.max_activation.where(~silent, torch.nan)
    write_site(tmp_path / "r", changed(site, pages=changed(site.pages, max_activation=undefined)))
    for latent, _, arrays, at in read_latents(tmp_path / "r"):
        assert np.isnan(arrays["max_activation"][at]) == bool(silent[latent])


def test_an_activation_above_the_stated_maximum_is_refused(site: Site, tmp_path: Path) -> None:
    assert site.pages is not None
    assert site.pages.max_activation is not None
    for wrong in (site.pages.max_activation * 0.9, site.pages.max_activation * torch.nan):
        pages = changed(site.pages, max_activation=wrong)
        with pytest.raises(ValueError, match="both should come from the same text"):
            write_site(tmp_path / "r", changed(site, pages=pages))
    assert not list(tmp_path.iterdir())


def test_a_column_of_one_choice_and_one_of_255(site: Site) -> None:
    for n in (1, 255):
        column = Column(
            name="c", label="c", help="", kind="choice",
            values=torch.tensor([-1, n - 1]), choices=[str(at) for at in range(n)],
        )  # fmt: skip
        _, arrays = table_file([column], n_tokens=None)
        assert arrays["c"].tolist() == [255, n - 1]


def test_a_report_without_text_or_latents_is_empty_not_broken() -> None:
    none = torch.zeros(0, dtype=torch.long)
    text = TokenText(tokens=none, strings=[], token_ids=none, row_start=torch.zeros(1, dtype=torch.long))
    assert text_file(text)[0] == {"strings": []}
    empty = Column(name="latent", label="latent", help="", kind="integer", values=none)
    assert table_file([empty], n_tokens=0)[0]["n_latents"] == 0


def test_the_table_says_which_other_files_there_are(site: Site, tmp_path: Path) -> None:
    """A browser that asks for a file that is not there complains, so the page has to know."""
    for at, (text, pages) in enumerate([(True, True), (False, False)]):
        folder = tmp_path / str(at)
        write_site(folder, site if pages else changed(site, text=None, pages=None))
        content, _ = data_of(folder, "table")
        assert (content["has_text"], content["has_pages"]) == (text, pages)
        assert (folder / "data" / "text.js").exists() == text
        assert (folder / "data" / "latents").exists() == pages
