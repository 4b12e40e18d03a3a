"""The model card is one document whose tables have a row for every stage and measure."""

from dataclasses import asdict

from crosscoders.zoo.card import model_card
from crosscoders.zoo.measure import Behaviour, SlipResponse
from crosscoders.zoo.recipe import RECIPES

ANSWERS = Behaviour(
    n_answers=7, accuracy=0.75, reflections_per_answer=1.5, tokens_per_answer=60.0, finished=1.0
)
SLIPS = SlipResponse(n_planted=5, reflects_after_slip=0.8, reflects_otherwise=0.2, right_in_the_end=0.6)
MEASURES = {
    "greedy": asdict(ANSWERS),
    "sampled": asdict(ANSWERS),
    "slips_greedy": asdict(SLIPS),
    "slips_sampled": asdict(SLIPS),
}


def test_every_table_row_has_as_many_cells_as_its_header():
    recipe = RECIPES["tiny-reasoner"]
    card = model_card(recipe, {"base": MEASURES, "null": MEASURES})
    tables = [block.splitlines() for block in card.split("\n\n") if block.startswith("|")]
    assert [len(table) - 2 for table in tables] == [len(recipe.stages), 2, 4]
    for table in tables:
        assert len({line.count("|") for line in table}) == 1


def test_card_states_the_measures_and_the_recipe():
    card = model_card(RECIPES["tiny-reasoner"], {"base": MEASURES})
    assert "| `base` | 75.0% | 1.500 | 75.0% | 1.500 | 60 |" in card
    assert "| `base` | temperature 1 | 80.0% | 20.0% | 60.0% |" in card
    assert "7 held-out problems" in card
    for stage in RECIPES["tiny-reasoner"].stages:
        assert f"| `{stage.name}` |" in card
