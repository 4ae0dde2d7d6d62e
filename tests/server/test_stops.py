"""Laws of stop strings, over every way of cutting a text."""

from hypothesis import given
from hypothesis import strategies as st

from server.stops import Stops

LETTERS = st.text(alphabet="abX", max_size=12)
STOPS = st.lists(st.text(alphabet="abX", min_size=1, max_size=4), max_size=3)


def shown_whole(text: str, stops: list[str]) -> str:
    """The slow twin: the shortest beginning of the text that ends in a stop string, without the longest such stop."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_what_is_shown_does_not_depend_on_the_cuts(pieces: list[str], stops: list[str]) -> None:
    watch = Stops(stops)
    shown = "".join(watch.push(piece) for piece in pieces) + watch.finish()
    assert shown == shown_whole("".join(pieces), stops)


@given(st.lists(LETTERS, max_size=6), STOPS)
def test_what_is_shown_early_is_never_taken_back(pieces: list[str], stops: list[str]) -> None:
    watch, shown = Stops(stops), ""
    for piece in pieces:
        shown += watch.push(piece)
        assert shown_whole("".join(pieces), stops).startswith(shown)


def test_nothing_is_held_that_no_stop_string_begins_with() -> None:
    watch = Stops(["END", "Enough"])
    assert watch.push("wordsE") == "words"
    assert watch.push("x") == "Ex"


def test_the_text_after_a_stop_string_is_kept_apart() -> None:
    watch = Stops(["|"])
    assert watch.push("a|b") == "a"
    assert (watch.met, watch.after, watch.push("c"), watch.finish()) == (True, "b", "", "")
