"""Which rows are equal to an earlier one."""

from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st

from llm_magic.seen import Seen

HEX = "0123456789abcdef"
# Few letters at the places that choose a slot, so that many keys want the same one.
CROWDED = st.builds(
    lambda head, low, rest: f"{head * 12}{low}{rest}".ljust(64, "0"),
    st.sampled_from("0f"),
    st.sampled_from(["0000", "07ff", "0fff", "ffff"]),
    st.text(HEX, min_size=8, max_size=12),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(CROWDED, st.binary(max_size=1).map(lambda b: sha256(b).hexdigest()))))
def test_it_names_the_first_row_of_a_key_as_a_dict_does(keys: list[str]) -> None:
    seen, first = Seen(), dict[str, int]()
    for row, key in enumerate(keys):
        assert seen.first(key, row) == first.get(key)
        first.setdefault(key, row)


def test_it_forgets_no_key_while_it_grows() -> None:
    seen = Seen()
    keys = [sha256(str(number % 7_000).encode()).hexdigest() for number in range(14_000)]
    found = [seen.first(key, row) for row, key in enumerate(keys)]
    assert found == [None] * 7_000 + list(range(7_000))


def test_row_numbers_may_be_any_up_to_four_billion() -> None:
    """A retry asks for rows by their numbers, which need not be dense."""
    seen = Seen()
    key, other = "0" * 64, "0" * 16 + "f" * 48
    assert seen.first(key, 2**32 - 2) is None
    assert seen.first(other, 0) is None
    assert seen.first(key, 5) == 2**32 - 2
    assert seen.first(other, 6) == 0


def test_a_key_of_ones_alone_is_a_key_like_others() -> None:
    seen = Seen()
    key = "f" * 64
    assert seen.first(key, 3) is None
    assert seen.first(key, 9) == 3
