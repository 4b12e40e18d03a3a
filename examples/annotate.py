"""Look at the latents of both ends of a finished run: where they fire, and which category they go with.

    python examples/annotate.py runs/demo

The demo's run takes about a minute. A language model behind any OpenAI-compatible endpoint annotates too with
`AnnotationOptions(endpoint={"base_url": ..., "model": ...})`, which says what it will cost before it asks.
If it wants a key, put that into an environment variable and its name into `api_key_env`.
"""

import json
import sys
from pathlib import Path

import crosscoders as cc
from crosscoders.experiments.annotation import AnnotationOptions


def main() -> None:
    """Run the experiment, then show some snippets of each end."""
    run = sys.argv[1] if len(sys.argv) > 1 else "runs/demo"
    out = Path(run) / "experiments" / "annotation"
    finding = cc.run_experiment(
        "annotation", cc.open_study(run), folder=out, options=AnnotationOptions(n_latents=50)
    )
    print(finding.verdict, *finding.lines, sep="\n")
    shown: dict[int, int] = {}
    for line in (out / "snippets.jsonl").read_text(encoding="utf-8").splitlines():
        snippet = json.loads(line)
        shown[snippet["latent"]] = shown.get(snippet["latent"], 0) + 1
        if shown[snippet["latent"]] <= 2 and len(shown) <= 5:
            print(f"latent {snippet['latent']:5}  {snippet['activation']:6.2f}  {snippet['text']}")


if __name__ == "__main__":
    main()
