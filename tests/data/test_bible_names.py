"""Promises of `bigctl.data.sources.bible_names`: names and numbers are found by how words are written."""

from __future__ import annotations

from bigctl.data.sources.bible_names import tag_sentences

TEXT = """And Moses went to Egypt. Now Moses saw Aaron in Egypt.
He numbered three hundred and ten men, [and] they spake unto the LORD God of Moses: And Aaron died at Egypt.
Then died Aaron. The seventh man was Aaron."""


def tagged(every: int = 1) -> list[str]:
    found = tag_sentences(TEXT, every)
    return [
        " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True) if tag != "O")
        for words, tags in zip(found.words, found.tags, strict=True)
    ]


def test_names_places_and_numbers_are_tagged_in_iob2():
    assert tagged() == [
        "Moses/B-NAME Egypt/B-PLACE",
        "Moses/B-NAME Aaron/B-NAME Egypt/B-PLACE",
        "three/B-NUMBER hundred/I-NUMBER and/I-NUMBER ten/I-NUMBER LORD/B-DEITY God/I-DEITY Moses/B-NAME "
        "Aaron/B-NAME Egypt/B-PLACE",
        "Aaron/B-NAME",
        "seventh/B-NUMBER Aaron/B-NAME",
    ]


def test_every_so_many_lines_are_taken_and_brackets_are_not():
    assert tagged(every=2) == ["Moses/B-NAME Egypt/B-PLACE", "Moses/B-NAME Aaron/B-NAME Egypt/B-PLACE", *tagged()[3:]]
    assert not any("[" in word for words in tag_sentences(TEXT).words for word in words)
