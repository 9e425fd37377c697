"""The mask finds every spelling of a secret, wherever the text is cut, in linear time."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import time
from collections.abc import Callable
from itertools import pairwise
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from statemachine.mask import MASK, SHORTEST, Mask, MaskedStream, hidden_parts, spellings

PATIENT = settings(deadline=None)
"""Without a deadline: a busy machine may take longer, which is not an error."""

PEM = (
    "-----BEGIN KEY-----\nMC4CAQ/wBQYDK2VwBCIEIAbc+efGhIjKl==\n  indented line\n-----END KEY-----\n"
)
# Without stars: the `***` of one mask could by chance complete the spelling of another secret.
LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="*")
VALUES = st.text(st.one_of(st.sampled_from("ab%/+ \n\r\t'\"\\ü<=&~"), LETTERS), max_size=30)


def lines_of(value: str) -> list[str]:
    lines = [value, *re.split("\r\n|\r|\n", value), *value.splitlines()]
    return [line for text in lines for line in (text, text.strip())]


def readable(text: str, part: str) -> bool:
    """Return whether a part that must be masked is in the text."""
    return len(part) >= SHORTEST and not part.isspace() and part in text


def as_written(part: str) -> list[str]:
    """Return the part in the spellings of other programs."""
    return [
        part,
        json.dumps(part)[1:-1],
        json.dumps(part, ensure_ascii=False)[1:-1],
        repr(part)[1:-1],
        quote(part),
        quote(part, safe=""),
        quote_plus(part),
        urlencode({"k": part})[2:],
        shlex.quote(part),
        html.escape(part),
        json.dumps(json.dumps(part))[3:-3],
    ]


def cut(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(min(place, len(text)) for place in cuts)})
    return [text[a:b] for a, b in pairwise(places)] if text else []


@PATIENT
@given(VALUES, VALUES, VALUES, st.lists(st.integers(0, 400), max_size=6))
@example("abc\nabcd", "", "", [3])
@example("ab'c\"d", "x", "y", [2, 4])
@example(" \na b\\\n'", "", "", [1])
def test_no_line_of_a_secret_survives_in_any_spelling_or_cut(
    value: str, before: str, after: str, cuts: list[int]
) -> None:
    mask = Mask([value])
    for part in lines_of(value):
        for spelling in as_written(part):
            text = f"{before}{spelling}{after}"
            stream = MaskedStream(mask)

            shown = "".join([*map(stream.feed, cut(text, cuts)), stream.release()])

            assert shown == mask.whole(text), "cutting makes no difference"
            assert len(shown.encode()) <= len(text.encode())
            assert not any(readable(shown, line) for line in lines_of(value))
            if len(part) >= SHORTEST and not part.isspace():
                assert not readable(shown, spelling)


@PATIENT
@given(st.lists(VALUES, max_size=5), VALUES)
def test_no_element_of_a_list_survives(elements: list[str], around: str) -> None:
    for value in (json.dumps(elements), json.dumps(elements, ensure_ascii=False, indent=1)):
        mask = Mask([value])
        for element in elements:
            for part in lines_of(element):
                for spelling in as_written(part):
                    shown = mask.whole(f"{around}{spelling}{around}")
                    assert not any(readable(shown, line) for line in lines_of(element))


@PATIENT
@given(st.lists(VALUES, max_size=3), VALUES, VALUES)
def test_a_mask_for_short_texts_hides_the_same_spellings(
    values: list[str], before: str, after: str
) -> None:
    for text in (
        before,
        *(f"{before}{written}{after}" for v in values for written in as_written(v)),
    ):
        assert Mask(values, longest=len(text)).whole(text) == Mask(values).whole(text)


def test_a_mask_for_short_texts_omits_spellings_that_are_longer() -> None:
    value = "\n".join(f"line {n} {'x' * 60}" for n in range(1000))

    assert spellings(value, longest=60) == set()
    assert "short one" in spellings("short one\n" + value, longest=60) <= spellings("short one")


@PATIENT
@given(
    st.lists(st.text("ab*c\n", max_size=5), max_size=3), st.text("ab*c\n", max_size=60), st.data()
)
def test_a_stream_shows_the_same_as_the_whole_text(
    values: list[str], text: str, data: st.DataObject
) -> None:
    stream, mask = MaskedStream(Mask(values)), Mask(values)
    cuts = data.draw(st.lists(st.integers(0, 60), max_size=6))

    assert "".join([*map(stream.feed, cut(text, cuts)), stream.release()]) == mask.whole(text)


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        PEM.replace("\n", "\r\n"),
        PEM.replace("\n", "\r"),
        PEM.replace("\n", " "),
        " ".join(PEM.split()),
        PEM.strip(),
        "".join(f"    {line}\n" for line in PEM.splitlines()),
        "\n".join(line.strip() for line in PEM.splitlines()),
        json.dumps({"key": PEM}),
        json.dumps({"key": PEM}).replace("/", "\\/"),
        json.dumps(PEM.replace("\n", "\r\n")),
        repr({"key": PEM}),
        repr([PEM, "it's"]),
        repr(PEM.encode()),
        quote(PEM),
        quote(PEM, safe=""),
        quote_plus(PEM),
        re.sub("%..", lambda found: found[0].lower(), quote(PEM, safe="")),
        f"https://user:{quote(PEM, safe='')}@host/",
        urlencode({"key": PEM.replace("\n", "\r\n")}),
        f"+ echo '{PEM}'",
    ],
)
def test_a_multi_line_key_is_hidden_in_every_spelling(text: str) -> None:
    shown = Mask([PEM]).whole(text)

    for line in ("BEGIN KEY", "MC4", "IEIAbc", "GhIjKl", "indented", "END KEY"):
        assert line not in shown
    assert MASK in shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('pa"ss/w<o>r&d', '{"p":"pa\\"ss/w\\u003co\\u003er\\u0026d"}'),  # Go
        ("pa/ss=word", '{"p":"pa/ss\\u003dword"}'),  # Gson
        ("pa+ss'word", '{"p":"pa\\u002Bss\\u0027word"}'),  # .NET
        ("pässword", '{"p":"p\\u00E4ssword"}'),
        ('it\'s a "secret"', "['it\\'s a \"secret\"']"),
        ("it's secret", "'\"' it\\'s secret"),
        ("pässword", "b'p\\xc3\\xa4ssword'"),
        ("pass word~", "?p=pass+word%7E"),
        ("päss word", "?p=p%c3%a4ss+word"),
        ("two  blanks", "echo two blanks"),
        ("\ttabbed value ", "x tabbed value x"),
        ('["first", "second one"]', "first"),
        ('["first", "second one"]', "second+one"),
        ('["a", "b", "c"]', '["a", "b", "c"]'),
        ("ab\nc\ndef", "ab\\nc\\ndef"),
        ("12\n34\n56", "12%0A34%0A56"),
        ("12\n34\n56", "12 34 56"),
        ("it's a $ecret", "+ login 'it'\\''s a $ecret'"),  # bash, zsh
        ("it's a $ecret", shlex.quote("it's a $ecret")),
        ('a"b`c$d\\e', r'PASSWORD="a\"b\`c\$d\\e"'),
        ("it's (a) $ecret", r"declare it\'s\ \(a\)\ \$ecret"),  # printf %q
        ('a"b\\c', json.dumps({"log": json.dumps({"p": 'a"b\\c'})})),
        ("pässword", json.dumps({"log": json.dumps({"p": "pässword"})})),
        ('<it\'s & "that">', html.escape('<it\'s & "that">')),
        ('<it\'s & "that">', html.escape('<it\'s & "that">', quote=False)),
        ('<it\'s & "that">', "&lt;it&#39;s &amp; &#34;that&#34;&gt;"),  # Go
        ('<it\'s & "that">', "&lt;it&apos;s &amp; &quot;that&quot;&gt;"),  # XML
        ("a/b=c'd", "a&#x2F;b&#x3D;c&#39;d"),  # Mustache
        ("correct horse", b"correct horse".hex()),
        ("correct horse", b"correct horse".hex().upper()),
        ("1234", "pin 1234"),
        ("true", "true"),
    ],
)
def test_this_spelling_is_hidden(value: str, text: str) -> None:
    shown = Mask([value]).whole(text)

    assert shown != text
    assert not any(spelling in shown for spelling in spellings(value))


@pytest.mark.parametrize("before", ["", "u", "me", "user:"])
@pytest.mark.parametrize("after", ["", "\n", "@host", "another"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
@pytest.mark.parametrize("value", ["hunter2?>~ü", "correct horse battery", "12345"])
def test_base64_of_a_secret_and_of_texts_around_it_is_hidden(
    value: str, encode: Callable[[bytes], bytes], after: str, before: str
) -> None:
    encoded = encode(f"{before}{value}{after}".encode()).decode()

    shown = Mask([value]).whole(f"Authorization: Basic {encoded}")

    left, right = shown.removeprefix("Authorization: Basic ").split(MASK)
    assert encoded.startswith(left)
    assert encoded.endswith(right)
    assert len(left) <= len(before.encode()) * 4 / 3 + 1
    assert len(right.rstrip("=")) <= len(after.encode()) * 4 / 3 + 2


@pytest.mark.parametrize(
    ("column", "encode"),
    [
        (76, lambda raw: base64.b64encode(raw).decode()),
        (64, lambda raw: base64.b64encode(raw).decode()),
        (60, bytes.hex),
    ],
)
def test_the_lines_of_a_long_encoded_secret_are_hidden(
    column: int, encode: Callable[[bytes], str]
) -> None:
    value = "".join(f"{number:x}/" for number in range(1_000, 1_100))
    lines = [*map("".join, zip(*[iter(encode(value.encode()))] * column, strict=False))]

    shown = Mask([value]).whole("\n".join(lines))

    assert len(lines) > 5
    assert shown.splitlines() == [MASK] * len(lines)


@pytest.mark.parametrize("value", ["", "1", "ab", "abc", "ab\n", "a\nb", " \t\n ", "[1]"])
def test_values_shorter_than_four_characters_are_not_hidden(value: str) -> None:
    text = "step 1 of 10: ab abc\n a\n    b [ \n"

    assert hidden_parts(value) == set()
    assert Mask([value]).whole(text) == text


def test_short_elements_of_a_list_are_not_hidden_and_others_are() -> None:
    mask = Mask(['["ab", "long one", "cd"]'])

    assert mask.whole("ab, long one, cd") == "ab, ***, cd"


def test_masking_never_makes_a_text_longer() -> None:
    text = "é/+=" * 10_000

    assert len(Mask(["é/+="]).whole(text)) < len(text)
    assert Mask(["é/+="]).whole(text) == MASK * 10_000


def test_the_longest_of_several_secrets_is_hidden() -> None:
    assert Mask(["secret", "secret-two", "two secrets"]).whole("secret-two") == MASK


def test_a_stream_emits_text_that_cannot_be_part_of_a_secret_at_once() -> None:
    stream = MaskedStream(Mask([PEM]))

    assert stream.feed("Enter the key: ") == "Enter the key: "
    assert stream.feed("-----BEG") == ""
    assert stream.feed("ONIA-----\n") == "-----BEGONIA-----\n"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (PEM * 30, "step 12 of 100: compiling module foo/bar.c with options -O2\n" * 30_000),
        ("a" * 1_000 + "b", "a" * 1_000_000),
        ("a" * 30_000 + "b" + "a" * 30_000, ("a" * 20_000 + "c") * 50),
        (json.dumps(["a" * n for n in range(4, 300)]), "a" * 1_000_000),
        (json.dumps([f"element-{n:04}" for n in range(1_000)]), "element-1234\n" * 80_000),
        ("MC4/", "MC4/" * 250_000),
    ],
    ids=["a key", "prefixes", "two halves", "nested", "many", "hits only"],
)
def test_masking_takes_linear_time(value: str, text: str) -> None:
    """A quadratic algorithm would take minutes; the bound leaves room for a busy machine."""
    begun = time.process_time()
    stream = MaskedStream(Mask([value]))

    for at in range(0, len(text), 65_536):
        stream.feed(text[at : at + 65_536])
    stream.release()

    assert time.process_time() - begun < 10


def test_the_rest_of_a_secret_is_masked_after_its_beginning_was_released() -> None:
    stream = MaskedStream(Mask(["secret", "cretaceous"]))

    assert stream.feed("a se") == "a "
    assert stream.holds_little
    assert stream.release() == "se"
    assert not stream.holds_little
    assert stream.feed("cre") == ""
    assert not stream.holds_little, "`secre` is long enough to be held back until more comes"
    assert stream.feed("t!") == "***!"
    assert stream.feed("se") == ""
    assert stream.release() == "se"
    assert stream.feed("lf") == "lf", "nothing is shown twice"


@PATIENT
@given(VALUES, VALUES, st.lists(st.integers(0, 400), max_size=4), st.sets(st.integers(0, 4)))
def test_releases_never_show_a_whole_secret(
    value: str, around: str, cuts: list[int], released: set[int]
) -> None:
    mask = Mask([value])
    text = f"{around}{value}{around}"
    stream, shown = MaskedStream(mask), ""

    for number, piece in enumerate(cut(text, cuts)):
        shown += stream.feed(piece)
        shown += stream.release() if number in released else ""

    shown += stream.release()
    if len(value.strip()) >= SHORTEST and MASK not in value:
        assert not readable(shown, value.strip()) or readable(mask.whole(text), value.strip())
