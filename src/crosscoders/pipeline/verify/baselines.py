"""The cheap baselines beside a verification: what means, principal axes and logits say of the difference."""

from crosscoders.diffing.baselines import (
    difference_moments,
    difference_of_means,
    difference_pca,
    logit_differences,
)
from crosscoders.harvest import ModelSources
from crosscoders.pipeline.config import RunConfig
from crosscoders.pipeline.corpus import Corpus
from crosscoders.pipeline.verify.jobs import Job
from crosscoders.pipeline.verify.rows import HeldOutRows
from crosscoders.sources import Source

_N_COMPONENTS, _N_TOKENS = 8, 5


def baseline_lines(
    job: Job,
    rows: HeldOutRows,
    sources: ModelSources,
    corpus: Corpus,
    config: RunConfig,
    *,
    n_tokens: int,
) -> list[str]:
    """Difference of means and its principal axes (equal widths), and the tokens whose logits differ most.

    Args:
        job: Names the pair.
        rows: Held-out rows.
        sources: The models; truncated ones have no logits.
        corpus: Its text.
        config: How the text is read.
        n_tokens: Held-out tokens whose logits are compared; 0 for none.

    Returns:
        Lines of text; none of a baseline that the pair does not admit.
    """
    pair: tuple[Source, ...] = job.sources(rows.sources)
    lines = []
    if pair[0].d_model == pair[1].d_model:
        moments = difference_moments(rows.of(job), pair)
        n_components = min(_N_COMPONENTS, pair[0].d_model)
        lines += difference_of_means(moments).lines()
        lines += difference_pca(moments, n_components=n_components).lines()
    models = sources.only(job.reads)
    if n_tokens and not any(model.is_truncated for model in models.models.values()):
        counted = corpus.counted(config.data)
        enough = int((counted.sum(dim=1).cumsum(dim=0) < n_tokens).sum()) + 1
        found = logit_differences(
            models,
            corpus.held_out[:enough],
            mask=counted[:enough],
            batch_size=config.data.sequences_per_harvest,
        )
        lines += found.lines(tokenizer=sources.tokenizer, n=_N_TOKENS)
    return lines
