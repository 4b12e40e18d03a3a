"""Verification end to end on small pairs: what it writes, what it says, and what it refuses."""

import csv
import dataclasses
import functools
import json
import random
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crosscoders.activation_fns import TopK
from crosscoders.cli import main
from crosscoders.crosscoder import Crosscoder, CrosscoderConfig
from crosscoders.diffing.measures.alignment import Alignment
from crosscoders.diffing.planted.spike_in import SpikeIn
from crosscoders.diffing.verdicts import ROTATED, SHARED, Judgement, Thresholds, Verdicts
from crosscoders.harvest import ModelSources
from crosscoders.latents import LatentTable
from crosscoders.models.id_policy import IdPolicy, IdRule
from crosscoders.pipeline.config import DataConfig, RunConfig
from crosscoders.pipeline.finished import open_sources
from crosscoders.pipeline.fit import fit_crosscoder
from crosscoders.pipeline.pair import load_pair, pair_corpus
from crosscoders.pipeline.run import run
from crosscoders.pipeline.verify import Verification, VerifyOptions, verify, verify_on
from crosscoders.pipeline.verify.causal import check_groups
from crosscoders.pipeline.verify.result import NULL, REAL, SELF, SPIKED
from crosscoders.provenance import sha256_file
from crosscoders.training import TrainerConfig
from crosscoders.zoo import model_path
from crosscoders.zoo.parser import to_text
from crosscoders.zoo.recipe import Architecture
from crosscoders.zoo.traces import write_trace
from crosscoders.zoo.train import build_model
from crosscoders.zoo.vocabulary import build_tokenizer

SHAPE = Architecture(n_layers=2, d_model=16, d_mlp=16, n_heads=2, n_kv_heads=1)
LITTLE = VerifyOptions(n_seeds=1, n_null_seeds=0, self_diff=False, spike_in=None, causal_tokens=0)
SPIKES = SpikeIn(rates=(0.2, 0.1), n_per_rate=2, strength=2.0, directions="random")
FILES = {"verdicts.csv", "verification.json", "summary.txt", "run.json", "manifest.json"}


def drifted(amount: float, *, seed: int) -> torch.nn.Module:
    """The toy base after small random steps in every weight."""
    model, generator = build_model(SHAPE, seed=0), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(amount * weight.std(correction=0) * noise)
    return model


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a base, two models near it, and a text."""
    folder = tmp_path_factory.mktemp("toys")
    models = {"base": drifted(0.0, seed=0), "distilled": drifted(0.3, seed=1), "null": drifted(0.05, seed=2)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    rng = random.Random(0)
    (folder / "text.txt").write_text("\n\n".join(to_text(write_trace(rng).ids).strip() for _ in range(150)))
    return folder


def toy_config(toys: Path, out: Path, *, distilled: str = "distilled") -> RunConfig:
    return RunConfig(
        base=str(toys / "base"),
        distilled=str(toys / distilled),
        text=str(toys / "text.txt"),
        out=str(out),
        n_latents=32,
        activation_fn=TopK(k=4),
        data=DataConfig(
            sequence_length=64, held_out_tokens=4000, batch_tokens=256, splice_tokens=0, n_tokens=6000
        ),
        training=TrainerConfig(lr=1e-2, checkpoint_every_steps=20, log_every_steps=0),
    )


@pytest.fixture(scope="module")
def finished(toys: Path) -> Path:
    """Folder of a finished run that wrote checkpoints, as the presets ask for."""
    run(toy_config(toys, toys / "run"))
    return toys / "run"


@pytest.fixture(scope="module")
def toy_sources(toys: Path) -> ModelSources:
    return load_pair(toy_config(toys, toys / "unused"), null=str(toys / "null"))


@pytest.fixture(scope="module")
def verified(finished: Path, toys: Path) -> Verification:
    options = dataclasses.replace(LITTLE, n_null_seeds=1, spike_in=SPIKES)
    return verify(finished, null=str(toys / "null"), options=options)


def test_everything_promised_is_written_over_the_files_of_an_earlier_one(verified: Verification) -> None:
    assert {file.name for file in verified.out.iterdir()} == FILES
    assert (verified.out / "summary.txt").read_text() == verified.summary() + "\n"
    written = json.loads((verified.out / "manifest.json").read_text())["files"]
    assert set(written) == FILES - {"manifest.json"}


def test_the_runs_manifest_covers_the_verification(verified: Verification, finished: Path) -> None:
    said = json.loads((finished / "manifest.json").read_text())["files"]
    for name in FILES - {"manifest.json"}:
        assert said[f"verify/{name}"]["sha256"] == sha256_file(verified.out / name)


def test_some_of_the_sources_read_as_among_all(toy_sources: ModelSources) -> None:
    tokens = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    whole, some = toy_sources.harvest(tokens), toy_sources.only(("null", "base"))
    assert [source.name for source in some.sources] == ["null", "base"]
    assert torch.equal(some.harvest(tokens), torch.cat([whole[..., 32:], whole[..., :16]], dim=-1))
    for names in (("base", "base"), ("base", "other"), ()):
        with pytest.raises(ValueError, match="source"):
            toy_sources.only(names)


def test_the_first_line_says_survivors_null_and_power(verified: Verification) -> None:
    first = verified.summary().splitlines()[0]
    said = (
        r"base against distilled: (\d+ of \d+ survive|none.*); the null expects \d+\.\d \(at most \d+\.\d\)"
    )
    assert re.fullmatch(said + r"; power \d\.\d\d at 20%, \d\.\d\d at 10%\.", first)


def test_the_table_holds_one_verdict_per_latent(verified: Verification) -> None:
    with (verified.out / "verdicts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == [j.verdict for j in verified.verdicts.judgements]
    assert [int(row["latent"]) for row in rows] == list(range(32))


def test_the_record_counts_what_the_summary_says(verified: Verification) -> None:
    record = json.loads((verified.out / "verification.json").read_text())
    assert record["survivors"] == verified.verdicts.latents().tolist()
    assert record["counts"] == verified.verdicts.counts()
    assert [null["name"] for null in record["nulls"]] == [NULL]
    null = record["nulls"][0]
    assert sum(null["n_live"].values()) == record["others"][NULL][0]["n_live"]
    assert [(at["rate"], at["n_planted"]) for at in record["power"]["rates"]] == [(0.2, 2), (0.1, 2)]
    assert record["power"]["known_direction_planted"] == 0


def test_strong_plants_are_found(verified: Verification) -> None:
    power = verified.verdicts.power
    assert power is not None
    assert power.strength == pytest.approx(2.0, rel=1e-3)
    assert sum(at.n_recovered for at in power.rates) >= 2
    assert sum(at.n_specific for at in power.rates) >= 1


def test_explain_gives_the_verdict_and_every_figure(verified: Verification) -> None:
    text = verified.explain(3)
    judged, evidence = verified.verdicts.judgements[3], verified.verdicts.evidence
    assert evidence is not None
    assert text.startswith(f"latent 3: {judged.verdict}\n  because {judged.reason}\n")
    assert all(f"\n  {name} " in text for name in evidence.columns)
    assert re.search(r"\n  stability .*not measured\n", text)


@pytest.mark.slow
def test_verifying_twice_gives_the_same(verified: Verification, finished: Path, toys: Path) -> None:
    options = dataclasses.replace(LITTLE, n_null_seeds=1, spike_in=SPIKES)
    again = verify(finished, null=str(toys / "null"), out=toys / "again", options=options)
    for name in ("verdicts.csv", "verification.json", "summary.txt"):
        assert (again.out / name).read_bytes() == (verified.out / name).read_bytes()


def test_seeds_give_stability_and_the_self_diff_is_a_null(finished: Path, toys: Path) -> None:
    options = dataclasses.replace(LITTLE, n_seeds=2, n_null_seeds=1, self_diff=True)
    found = verify(finished, options=options, out=toys / "seeds")
    evidence = found.verdicts.evidence
    assert evidence is not None
    live = evidence["n_firings"] > 0
    assert not bool(evidence["stability"][live].isnan().any())
    assert {name: len(group) for name, group in found.others.items()} == {REAL: 1, SELF: 1, SPIKED: 0}
    first = found.summary().splitlines()[0]
    assert f"the null ({SELF}) expects" in first  # not the null that the field asks for
    assert "power not measured" in first


@pytest.mark.slow
def test_nulls_are_filtered_by_stability_only_where_the_pair_is(finished: Path, toys: Path) -> None:
    options = dataclasses.replace(LITTLE, n_null_seeds=2, self_diff=True)
    found = verify(finished, options=options, out=toys / "alike")
    assert all(bool(one.evidence["stability"].isnan().all()) for one in found.others[SELF])


def test_no_null_named_is_said(finished: Path, toys: Path) -> None:
    found = verify(finished, options=LITTLE, out=toys / "no_null")
    assert "chance not measured (name a null pair); power not measured" in found.summary().splitlines()[0]
    assert found.verdicts.nulls == ()


@pytest.mark.slow
def test_a_null_may_be_the_folder_of_a_run(finished: Path, toys: Path, verified: Verification) -> None:
    run(toy_config(toys, toys / "null_run", distilled="null"))
    options = dataclasses.replace(LITTLE, n_null_seeds=1, spike_in=SPIKES)
    found = verify(finished, null=str(toys / "null_run"), options=options, out=toys / "null_of_run")
    assert found.verdicts.nulls == verified.verdicts.nulls


def test_a_null_may_be_bundled(toys: Path) -> None:
    bundled = {name: str(model_path("tiny-reasoner", name)) for name in ("base", "distilled")}
    config = dataclasses.replace(toy_config(toys, toys / "far"), **bundled)
    sources = open_sources(config, null="zoo:tiny-reasoner/null")
    assert sources.models["null"].model_id == str(model_path("tiny-reasoner", "null"))


def test_the_command_prints_the_summary_and_where_the_table_is(finished, toys, capsys) -> None:
    assert main(["verify", str(finished), "--short", "--out", str(toys / "cli")]) == 0
    printed = capsys.readouterr().out
    assert "Causal check on" in printed or "base against distilled" in printed
    assert str(toys / "cli" / "verdicts.csv") in printed
    assert {file.name for file in (toys / "cli").iterdir()} == FILES


@pytest.mark.slow
def test_the_bundled_pair_with_its_null_a_plant_and_the_causal_check(toys: Path) -> None:
    bundled = {name: str(model_path("tiny-reasoner", name)) for name in ("base", "distilled")}
    config = dataclasses.replace(toy_config(toys, toys / "bundled"), **bundled, n_latents=96)
    sources = load_pair(config, null=str(model_path("tiny-reasoner", "null")))
    corpus = pair_corpus(config, sources)
    crosscoder = fit_crosscoder(sources.only(("base", "distilled")), corpus, without_checkpoints(config))
    options = VerifyOptions(
        n_seeds=2, n_null_seeds=1, spike_in=SPIKES, causal_tokens=300, n_controls=2, self_diff=False
    )
    found = verify_on(crosscoder, sources, corpus, config, out=toys / "bundled", options=options)
    assert {file.name for file in found.out.iterdir()} == FILES
    first = found.summary().splitlines()[0]
    assert re.search(r"the null expects \d", first)
    assert re.search(r"power \d\.\d\d at 20%", first)
    assert "power leaves the stability test out" in found.summary()
    assert set(found.causal) == {"text", "distilled's own text"}
    for check in found.causal.values():
        assert check.anchors["true difference"].kl.mean == pytest.approx(0, abs=1e-6)
        assert check.anchors["all latents and bias"].share_closed.mean > 0.2
    assert found.baselines[0].startswith("difference of means, distilled less base")
    assert any(line.startswith("logit differences, distilled less base") for line in found.baselines)


def without_checkpoints(config: RunConfig) -> RunConfig:
    return dataclasses.replace(
        config, training=dataclasses.replace(config.training, checkpoint_every_steps=0)
    )


class Misaligned(ModelSources):
    """The same models, but the rows of the second are out of order."""

    def harvest(self, tokens: Tensor) -> Tensor:
        """Rows of the first source beside the second's of other tokens."""
        rows = super().harvest(tokens)
        order = torch.randperm(tokens.numel(), generator=torch.Generator().manual_seed(int(tokens.sum())))
        width = self.sources[0].d_model
        second = rows[..., width:].flatten(0, 1)[order].reshape(*tokens.shape, -1)
        return torch.cat([rows[..., :width], second], dim=-1)


def misaligned(sources: ModelSources) -> Misaligned:
    names = ("base", "distilled")
    return Misaligned(
        {name: sources.models[name] for name in names},
        hook_names={source.name: source.hook_name for source in sources.sources if source.name in names},
        tokenizer=sources.tokenizer,
    )


def test_rows_out_of_order_give_no_verdict(finished, toys, toy_sources) -> None:
    out = toys / "misaligned"
    out.mkdir()
    (out / "verdicts.csv").write_text("of an earlier verification")
    found = verify(finished, sources=misaligned(toy_sources), options=LITTLE, out=out)
    text = found.summary()
    assert text.startswith("base against distilled: sources not aligned")
    assert not any(word in text for word in ("survive", "model-specific", "null", "power"))
    assert {file.name for file in out.iterdir()} == FILES - {"verdicts.csv"}
    record = json.loads((out / "verification.json").read_text())
    assert (record["survivors"], record["counts"]) == (None, None)
    assert not record["alignment"]["is_aligned"]
    for ask in (found.verdicts.counts, found.verdicts.latents, found.verdicts.frequency):
        with pytest.raises(ValueError, match=r"no verdicts.*not aligned"):
            ask()
    with pytest.raises(ValueError, match=r"no verdicts.*not aligned"):
        found.explain(0)


def test_the_command_names_no_table_where_there_is_none(finished, toys, toy_sources, monkeypatch, capsys):
    given = functools.partial(verify, sources=misaligned(toy_sources))  # no folder holds such models
    monkeypatch.setattr("crosscoders.cli.verify", given)
    assert main(["verify", str(finished), "--short", "--out", str(toys / "none")]) == 0
    printed = capsys.readouterr().out
    assert "sources not aligned" in printed
    assert "verdicts.csv" not in printed


def test_bad_input_is_refused(finished, toys, toy_sources) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json"):
        verify(toys / "nowhere")
    with pytest.raises(ValueError, match="both sources"):
        verify(finished, null=str(toys / "null"), sources=toy_sources, options=LITTLE)
    with pytest.raises(ValueError, match="no checkpoint 'tiny-reasoner'/'other'"):
        verify(finished, null="zoo:tiny-reasoner/other", options=dataclasses.replace(LITTLE, n_null_seeds=1))
    with pytest.raises(ValueError, match="n_seeds"):
        VerifyOptions(n_seeds=0)
    with pytest.raises(ValueError, match="causal_tokens"):
        VerifyOptions(causal_tokens=-1)


def test_text_that_changed_is_refused(finished, toys) -> None:
    config = toy_config(toys, toys / "unused")
    sources = load_pair(config)
    corpus = pair_corpus(dataclasses.replace(config, seed=1), sources)
    with pytest.raises(ValueError, match="held-out text"):
        verify(finished, sources=sources, corpus=corpus, options=LITTLE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"name": "other"}, "other"),
        ({"hook_name": "blocks.0.hook_resid_pre"}, "hook_resid_pre"),
        ({"d_model": 8}, "8"),
    ],
)
def test_sources_that_are_not_the_crosscoders_are_refused(toys, toy_sources, changed, said) -> None:
    first, second = toy_sources.sources[:2]
    config = CrosscoderConfig(
        sources=(first, dataclasses.replace(second, **changed)), n_latents=4, activation_fn=TopK(k=2)
    )
    run_config = toy_config(toys, toys / "unused")
    corpus = pair_corpus(run_config, toy_sources)
    with pytest.raises(ValueError, match=rf"verify: .*{said}"):
        verify_on(Crosscoder(config), toy_sources, corpus, run_config, out=toys / "refused", options=LITTLE)


def test_three_sources_are_refused(toys, toy_sources) -> None:
    config = CrosscoderConfig(sources=toy_sources.sources, n_latents=4, activation_fn=TopK(k=2))
    run_config = toy_config(toys, toys / "unused")
    corpus = pair_corpus(run_config, toy_sources)
    with pytest.raises(ValueError, match="two sources"):
        verify_on(Crosscoder(config), toy_sources, corpus, run_config, out=toys / "refused", options=LITTLE)


def of_verdicts(crosscoder: Crosscoder, verdicts: list[str]) -> Verdicts:
    n = len(verdicts)
    figures = {"latent": torch.arange(n), "n_firings": torch.full((n,), 500)}
    right = Alignment(
        pair=("base", "distilled"), n_rows=1000, r_squared=(0.9, 0.9), permuted=(0.0, 0.0),
        shifted=(0.0, 0.0), min_gain=0.1,
    )  # fmt: skip
    return Verdicts(
        pair=("base", "distilled"),
        evidence=LatentTable(figures, 1000),
        judgements=tuple(Judgement(verdict=verdict, reason="said so") for verdict in verdicts),
        thresholds=Thresholds(),
        alignment=right,
    )


def causal(toys: Path, sources: ModelSources, verdicts: list[str]) -> dict:
    config = toy_config(toys, toys / "unused")
    own = tuple(dataclasses.replace(source, scale=0.5) for source in sources.sources[:2])
    crosscoder = Crosscoder(
        CrosscoderConfig(sources=own, n_latents=len(verdicts), activation_fn=TopK(k=2))
    ).eval()
    options = dataclasses.replace(LITTLE, causal_tokens=150, n_controls=2)
    corpus = pair_corpus(config, sources)
    return check_groups(
        crosscoder, sources, corpus, config, of_verdicts(crosscoder, verdicts), options=options
    )


def test_a_group_without_enough_others_to_draw_goes_without_controls(toys, toy_sources) -> None:
    few = causal(toys, toy_sources, [ROTATED] * 6 + [SHARED] * 2)
    assert set(few) == {"text", "distilled's own text"}
    for check in few.values():
        assert check.sets[ROTATED].latents == tuple(range(6))
        assert not check.sets[ROTATED].controls
    enough = causal(toys, toy_sources, [ROTATED] * 3 + [SHARED] * 5)
    assert set(enough["text"].sets[ROTATED].controls) == {"count", "norm", "identity"}


def test_own_text_goes_without_ids_that_the_policy_drops(toys, toy_sources) -> None:
    corpus = pair_corpus(toy_config(toys, toys / "unused"), toy_sources)
    known = set(corpus.held_out.unique().tolist()) | set(corpus.train.unique().tolist())
    foreign = tuple(i for i in range(toy_sources.models["base"].n_vocab) if i not in known)
    assert foreign  # which an untrained model says all the time
    pair = toy_sources.only(("base", "distilled"))
    pair.id_policy = IdPolicy(rules=(IdRule(action="drop", token_ids=foreign),))
    found = causal(toys, pair, [ROTATED] * 3 + [SHARED] * 5)
    assert found["distilled's own text"].n_tokens > 0
