"""The arguments of `crosscoders convert`."""

import argparse
import json
from pathlib import Path

import pytest

from crosscoders.crosscoder import Crosscoder
from crosscoders.hub.convert import add_convert_arguments, convert_command
from tests.hub.formats.foreign_cases import ckkissane, jnward


def run(*arguments: object) -> str:
    parser = argparse.ArgumentParser()
    add_convert_arguments(parser)
    return convert_command(parser.parse_args([str(argument) for argument in arguments]))


def test_scale_and_names_reach_the_artifact(tmp_path: Path) -> None:
    folder, out = ckkissane().write(tmp_path / "theirs"), tmp_path / "ours"
    said = run(folder, out, "--scale", "0.5,0.2", "--source", "base", "--source", "tuned")
    assert [(s.name, s.scale) for s in Crosscoder.from_pretrained(out).sources] == [
        ("base", 0.5),
        ("tuned", 0.2),
    ]
    assert "24 latents from format ckkissane; sources base (width 6, scale 0.5), tuned" in said


@pytest.mark.parametrize("content", [[0.5, 0.2], {"model_1": 0.2, "model_0": 0.5}])
def test_the_scale_may_stand_in_a_file(content: object, tmp_path: Path) -> None:
    (tmp_path / "scale.json").write_text(json.dumps(content))
    run(ckkissane().write(tmp_path / "theirs"), tmp_path / "ours", "--scale-file", tmp_path / "scale.json")
    assert [s.scale for s in Crosscoder.from_pretrained(tmp_path / "ours").sources] == [0.5, 0.2]


def test_k_may_be_given_and_notes_are_said(tmp_path: Path) -> None:
    folder = jnward(in_file=False).write(tmp_path / "theirs")
    assert "note: The files hold no threshold" in run(folder, tmp_path / "ours", "--scale", "1,1", "--k", 4)


def test_a_scale_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder, file = ckkissane().write(tmp_path / "theirs"), tmp_path / "scale.json"
    file.write_text('"x"')
    for arguments in (("--scale", "a,b"), ("--scale-file", file), ("--scale", "1,1", "--scale-file", file)):
        with pytest.raises(ValueError, match="scale"):
            run(folder, tmp_path / "ours", *arguments)
    assert not (tmp_path / "ours").exists()
