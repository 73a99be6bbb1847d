"""Checks of names: what can only be a path must be there, what may be a name on the Hub is left to the Hub."""

import pytest

from modeling_asymvlm.utils.checks import check_is_there


@pytest.mark.parametrize("value", ["", "./nope", "../nope", "/nope", "~/nope", "a/b/c"])
def test_a_path_where_nothing_is_is_refused(value):
    with pytest.raises(FileNotFoundError, match="There is no folder .*give that of a checkpoint"):
        check_is_there(value)


def test_a_folder_and_names_of_the_hub_pass(tmp_path):
    for value in (str(tmp_path), "gpt2", "openai/clip-vit-base-patch32"):
        check_is_there(value)
