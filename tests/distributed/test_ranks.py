"""The same bits for any number of ranks; agreement, refusals, shares."""

from __future__ import annotations

import pytest
from cases import CASES
from conftest import results

RANKS = (1, 2, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What all cases give, by number of ranks; None: without a launcher."""
    folder = tmp_path_factory.mktemp("cases")
    return {ranks: results(ranks, folder, "cases") for ranks in (None, *RANKS)}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("ranks", RANKS)
def test_ranks_give_the_bits_of_one_process(found, name, ranks):
    """Parameters, moments, norms and joint losses; each case also has asserts of its own."""
    assert found[ranks][name] == found[None][name]


def test_what_is_refused_is_named(found):
    value, norm, shards, mixed, mapping, _ = found[1]["refusals_by_all_ranks"]
    for text, clip in ((value, "value=1.0"), (norm, "max_norm=2.0")):
        assert text.startswith(
            "ValueError: clip: expected no value and no max_norm in the backward of grads['gru'] "
            "with comm, got Clip("
        )
        assert clip in text
    assert shards == "ValueError: grads: expected those of N shards, got 0"
    expected = (
        "TypeError: grads['weight']: expected SparseRows, as in the first shard, got an array"
    )
    assert mixed == expected
    assert mapping.startswith("TypeError: grads: expected the gradients of N shards, in order")
