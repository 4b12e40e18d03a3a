"""The paper's four reasoning categories: what opens them, and which latents go with them."""

from crosscoders.reasoning.annotators import (
    Annotation,
    LabelAnnotator,
    LatentAnnotator,
    LexicalLatentAnnotator,
    has_labels,
    label_categories,
)
from crosscoders.reasoning.categories import CATEGORIES, LEXICON
from crosscoders.reasoning.collect import (
    LatentSnippets,
    SnippetCollection,
    SnippetCollector,
    SnippetOptions,
    collect_snippets,
)
from crosscoders.reasoning.contrasts import lexical_contrasts
from crosscoders.reasoning.endpoint import ChatClient, EndpointError
from crosscoders.reasoning.endpoint_config import CostEstimate, EndpointConfig, EndpointReport
from crosscoders.reasoning.enrichment import N_BINS, Enrichment
from crosscoders.reasoning.excess import ANY_CATEGORY, CategoryExcess, category_excess
from crosscoders.reasoning.lexical import LexicalAnnotator, Opener
from crosscoders.reasoning.lexicon import CategoryWords, read_lexicon
from crosscoders.reasoning.llm import (
    AnnotationReport,
    LLMAnnotator,
    LLMJudge,
    annotate_latents,
    category_hints,
)
from crosscoders.reasoning.reading import LatentRows, read_latents
from crosscoders.reasoning.roles import ROLES, RoleMeasures, RoleMeter, chat_roles, measure_roles
from crosscoders.reasoning.scoring import (
    BalancedAccuracy,
    Judge,
    LexicalJudge,
    MarkedSnippet,
    detection_score,
    fuzzing_score,
    wilson_interval,
)
from crosscoders.reasoning.select import ExtremeLatents, extreme_latents, frequency_matched
from crosscoders.reasoning.snippets import Snippet, quantile_snippets, top_snippets

__all__ = [
    "ANY_CATEGORY",
    "CATEGORIES",
    "LEXICON",
    "N_BINS",
    "ROLES",
    "Annotation",
    "AnnotationReport",
    "BalancedAccuracy",
    "CategoryExcess",
    "CategoryWords",
    "ChatClient",
    "CostEstimate",
    "EndpointConfig",
    "EndpointError",
    "EndpointReport",
    "Enrichment",
    "ExtremeLatents",
    "Judge",
    "LLMAnnotator",
    "LLMJudge",
    "LabelAnnotator",
    "LatentAnnotator",
    "LatentRows",
    "LatentSnippets",
    "LexicalAnnotator",
    "LexicalJudge",
    "LexicalLatentAnnotator",
    "MarkedSnippet",
    "Opener",
    "RoleMeasures",
    "RoleMeter",
    "Snippet",
    "SnippetCollection",
    "SnippetCollector",
    "SnippetOptions",
    "annotate_latents",
    "category_excess",
    "category_hints",
    "chat_roles",
    "collect_snippets",
    "detection_score",
    "extreme_latents",
    "frequency_matched",
    "fuzzing_score",
    "has_labels",
    "label_categories",
    "lexical_contrasts",
    "measure_roles",
    "quantile_snippets",
    "read_latents",
    "read_lexicon",
    "top_snippets",
    "wilson_interval",
]
