"""What the planted benchmark is: fixed, and put into the repository, before any threshold was tuned.

A *setting* says how worlds are drawn, a *recipe* how a crosscoder is trained, a *case* is one training.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.planted.recipes import STANDARD, Recipe
from crosscoders.diffing.planted import PlantedConfig, PlantedWorld

BATCH_TOKENS = 512
TRAIN_TOKENS = 3906 * BATCH_TOKENS  # 2.0 million
BIAS_TOKENS = 8192
HELD_OUT_TOKENS = 200_000
WORLDS_PER_SEED = 2  # so that a seed has 32 exclusive, 32 re-used and 32 rotated features per base rate

# Each use of randomness has its own generator; a world's own one is seeded with 1000 * seed + world.
INIT, TRAIN_ROWS, HELD_OUT_ROWS, METHODS = 10_000_000, 20_000_000, 30_000_000, 40_000_000


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How the worlds of some seeds are drawn.

    Args:
        name: Shown in tables and file names.
        config: Of every world.
        calibration: Seeds that thresholds are chosen from.
        scored: Seeds that scores come from.
        one_space: Whether shared directions are the same in both sources, as in a model and its fine-tuned
            self, and not an isometric image: what methods that subtract activations need.
    """

    name: str
    config: PlantedConfig
    calibration: tuple[int, ...] = ()
    scored: tuple[int, ...] = ()
    one_space: bool = False


MAIN = Setting(name="main", config=PlantedConfig(), calibration=(0, 1, 2, 3, 4), scored=(5, 6, 7, 8, 9))
SUPERPOSITION = Setting(
    name="other superposition", config=replace(MAIN.config, d_models=(48, 72)), scored=(5, 6, 7)
)
CORRELATION = Setting(
    name="other correlation", config=replace(MAIN.config, correlation=0.4, hierarchy=0.3), scored=(5, 6, 7)
)
EQUAL_WIDTHS = Setting(
    name="equal widths",
    config=replace(MAIN.config, d_models=(80, 80)),
    calibration=(0, 1),
    scored=(5,),
    one_space=True,
)
SETTINGS = {setting.name: setting for setting in (MAIN, SUPERPOSITION, CORRELATION, EQUAL_WIDTHS)}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One crosscoder on one world.

    Args:
        setting: How the world is drawn.
        seed: Its seed.
        world: Number of the world within the seed.
        recipe: How the crosscoder is trained.
    """

    setting: Setting
    seed: int
    world: int
    recipe: Recipe = STANDARD

    @property
    def number(self) -> int:
        """What its generators are seeded from."""
        return 1000 * self.seed + self.world

    @property
    def name(self) -> str:
        """Name of its files."""
        return "-".join([self.setting.name, self.recipe.name, str(self.seed), str(self.world)]).replace(
            " ", "_"
        )

    def folder(self, cache: Path) -> Path:
        """Where the trained crosscoder is kept."""
        return cache / self.name

    def generator(self, use: int) -> torch.Generator:
        """Randomness for one use, such as `TRAIN_ROWS`."""
        return torch.Generator().manual_seed(use + self.number)

    def draw_world(self) -> PlantedWorld:
        """The world; the same every time."""
        world = PlantedWorld.make(self.setting.config, generator=self.generator(0))
        return _in_one_space(world) if self.setting.one_space else world


def _in_one_space(world: PlantedWorld) -> PlantedWorld:
    """The same world with the map between its sources undone; the map must be a rotation."""
    assert world.maps is not None
    if len(set(world.config.d_models)) > 1:
        raise ValueError(f"Setting: one_space needs equal widths, got {world.config.d_models}.")
    back = [directions @ matrix for directions, matrix in zip(world.directions, world.maps, strict=True)]
    return replace(world, directions=tuple(back), maps=tuple(torch.eye(len(m)) for m in world.maps))


def cases_of(setting: Setting, seeds: tuple[int, ...], recipe: Recipe = STANDARD) -> list[Case]:
    """All worlds of some seeds."""
    return [
        Case(setting=setting, seed=seed, world=world, recipe=recipe)
        for seed in seeds
        for world in range(WORLDS_PER_SEED)
    ]


def architecture_cases(recipes: tuple[Recipe, ...]) -> list[Case]:
    """Every recipe on the same worlds of equal widths."""
    return [case for recipe in recipes for case in cases_of(EQUAL_WIDTHS, EQUAL_WIDTHS.scored, recipe)]


def calibration_cases() -> list[Case]:
    """What thresholds are chosen from; of equal widths the one on directions, which needs a common space."""
    return [case for setting in (MAIN, EQUAL_WIDTHS) for case in cases_of(setting, setting.calibration)]


def scored_cases() -> list[Case]:
    """What scores come from: none of them took part in calibration."""
    return [
        case for setting in (MAIN, SUPERPOSITION, CORRELATION) for case in cases_of(setting, setting.scored)
    ]
