"""Do word pairs form parallelograms, and in which of two models the better ones?

Run: `python examples/geometry.py` for tiny-reasoner and its own words, in some seconds on a CPU, or
`python examples/geometry.py FOLDER --base MODEL --distilled MODEL` with a folder of Todd et al.'s word pairs
(`dataset_files/abstractive` of their repository); pairs with words that the models do not know are left out.
"""

import argparse

from crosscoders.geometry import GeometryProbe, read_word_tasks
from crosscoders.harvest import load_sources
from crosscoders.zoo import model_path
from crosscoders.zoo.analogies import word_tasks


def main() -> None:
    """Print loss, null and difference of every task, in the paper's 20 principal components."""
    parser = argparse.ArgumentParser(description="Parallelograms of word pairs in two models.")
    parser.add_argument(
        "folder", nargs="?", help="folder of <task>.json files; tiny-reasoner's own if absent"
    )
    parser.add_argument("--base", default=str(model_path("tiny-reasoner", "base")))
    parser.add_argument("--distilled", default=str(model_path("tiny-reasoner", "distilled")))
    parser.add_argument("--components", type=int, default=20)
    asked = parser.parse_args()

    sources = load_sources({"base": asked.base, "distilled": asked.distilled}, hook_name="half")
    probe = GeometryProbe(sources, n_components=asked.components)
    result = probe.parallelogram(word_tasks() if asked.folder is None else read_word_tasks(asked.folder))
    print(result)
    print(result.difference("distilled", "base"))
    print(result.difference("distilled", "base", relative=True))


if __name__ == "__main__":
    main()
