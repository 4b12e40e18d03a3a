"""The bundled checkpoints do what their card says, on problems that no training text contained."""

import json

import pytest

from crosscoders.models import load_model, tokenizer_fingerprint
from crosscoders.zoo import FAMILIES, model_path
from crosscoders.zoo.evaluate import measure_member, model_card
from crosscoders.zoo.measure import answer_problems, behaviour, held_out_problems
from crosscoders.zoo.recipe import RECIPES
from crosscoders.zoo.traces import ROUTINE_REFLECTION_RATE

FAMILY = "tiny-reasoner"
MEMBERS = FAMILIES[FAMILY]


@pytest.fixture(scope="module")
def models():
    return {name: load_model(model_path(FAMILY, name), name=name) for name in MEMBERS}


def test_family_weighs_at_most_ten_megabytes():
    folder = model_path(FAMILY, "base").parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 10_000_000


def test_members_share_one_tokenizer(models):
    assert len({tokenizer_fingerprint(model.tokenizer) for model in models.values()}) == 1


def test_unknown_member_names_the_known_ones():
    with pytest.raises(ValueError, match="distilled"):
        model_path(FAMILY, "teacher")


@pytest.mark.parametrize("name", MEMBERS)
def test_member_answers_held_out_problems(models, name):
    problems = held_out_problems(40, seed=1)
    found = behaviour(problems, answer_problems(models[name], problems))
    assert found.accuracy >= 0.9
    assert found.finished == 1.0


def test_model_card_is_what_the_measures_say():
    folder = model_path(FAMILY, "base").parent
    measures = json.loads((folder / "measures.json").read_text())
    assert set(measures) == set(MEMBERS)
    assert (folder / "README.md").read_text() == model_card(RECIPES[FAMILY], measures)


@pytest.mark.slow
def test_family_meets_its_targets(models):
    """500 held-out problems and 200 planted slips per member."""
    found = {name: measure_member(models[name], seed=77) for name in MEMBERS}
    base, distilled, null = (found[name] for name in MEMBERS)
    assert base["greedy"]["accuracy"] >= 0.95
    assert base["greedy"]["reflections_per_answer"] <= 0.02
    assert distilled["greedy"]["accuracy"] >= 0.95
    assert null["greedy"]["accuracy"] >= base["greedy"]["accuracy"] - 0.01
    assert null["greedy"]["reflections_per_answer"] <= 0.02
    assert distilled["slips_greedy"]["reflects_after_slip"] >= 0.9
    assert distilled["slips_greedy"]["right_in_the_end"] >= 0.8
    for decoding in ("slips_greedy", "slips_sampled"):
        assert abs(distilled[decoding]["reflects_otherwise"] - ROUTINE_REFLECTION_RATE) <= 0.05
