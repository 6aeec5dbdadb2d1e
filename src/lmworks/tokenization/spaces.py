"""Spaces before punctuation taken out of decoded text, at once or as it streams. Knows no token.

Old WordPiece and Unigram folders ask for it with `clean_up_tokenization_spaces`. It is what `transformers` does: a
fixed list of replacements, one after the other, each over the whole text.
"""

from __future__ import annotations

_REPLACEMENTS = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def clean_up(text: str) -> str:
    """`it 's here .` becomes `it's here.`."""
    for found in _REPLACEMENTS:
        text = text.replace(found, found.strip())
    return text


def settled(text: str) -> int:
    """How much of a text that goes on can be cleaned up by itself.

    Every replacement deletes spaces only and begins with one, so none reaches across three characters that are not
    spaces, or across a space that no replacement deletes whatever stands around it.
    """
    for end in range(len(text), 0, -1):
        if end >= 3 and " " not in text[end - 3 : end]:
            return end
        stays = text[end - 1] == " " and text[end - 2 : end - 1] != "'"
        if stays and end < len(text) and text[end] not in " .?!,'n":
            return end
    return 0
