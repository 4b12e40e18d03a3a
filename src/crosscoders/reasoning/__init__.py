"""The paper's four reasoning categories: what opens them, and which latents go with them."""

from crosscoders.reasoning.categories import CATEGORIES, LEXICON
from crosscoders.reasoning.contrasts import lexical_contrasts
from crosscoders.reasoning.enrichment import N_BINS, Enrichment

__all__ = ["CATEGORIES", "LEXICON", "N_BINS", "Enrichment", "lexical_contrasts"]
