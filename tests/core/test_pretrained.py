"""Reading a crosscoder by the name of its folder."""

import pytest
import torch

import crosscoders as cc
from crosscoders.activation_fns import ReLU
from tests.core.toy import toy_crosscoder, toy_rows


def test_from_pretrained_reads_what_was_saved(tmp_path):
    crosscoder, rows = toy_crosscoder(ReLU()), toy_rows(8)
    crosscoder.save_pretrained(tmp_path / "mine")
    again = cc.from_pretrained(tmp_path / "mine")
    assert not again.training
    assert torch.equal(again.reconstruct(rows), crosscoder.reconstruct(rows))


@pytest.mark.parametrize("error", [cc.CheckpointError, ValueError])
def test_missing_folder_says_what_to_pass(tmp_path, error):
    with pytest.raises(error, match=r"someone/model.*not a folder.*save_pretrained"):
        cc.from_pretrained("someone/model")


def test_folder_of_something_else_names_the_file_that_is_missing(tmp_path):
    with pytest.raises(cc.CheckpointError, match=r"config\.json.*no such file"):
        cc.from_pretrained(tmp_path)
