"""A question about an encyclopedia article and its answer, by rule from the article's first sentences.

The same article always gives the same question. Knows no file.
"""

from __future__ import annotations

import hashlib
import re

ANSWER_CHARACTERS = 300
"""Sentences are added to an answer while it stays within this length."""
_ENOUGH = 80
_SENTENCE_END = re.compile(r"(?<=[.!?])[\")\]]?\s+(?=[A-Z\"(])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|[Ss]t|Dr|Mr|Mrs|Ms|Jr|Sr|c|ca|vs|no|No|vol|i\.e|e\.g|lit|approx|U\.S|U\.K|[A-Z]\.[A-Z]))\.$"
)
_VERB = re.compile(r"\s(is|are|was|were)\s")
_ARTICLE = re.compile(r"^(An?|The)\b")

_WITH_VERB = (
    "{who} {verb} {subject}?",
    "{who} {verb} {subject}?",
    "Can you tell me {who_lower} {subject} {verb}?",
    "I would like to know {who_lower} {subject} {verb}.",
)
_WITHOUT_VERB = (
    "Tell me about {subject}.",
    "Describe {subject} briefly.",
    "What do you know about {subject}?",
    "Give me a short introduction to {subject}.",
    "Explain {subject} in a sentence or two.",
)


def question_and_answer(title: str, extract: str, person: bool) -> tuple[str, str]:
    """Phrase a question about `title` and cut its answer from the article's introduction.

    Args:
        title: of the article.
        extract: its introduction.
        person: whether to ask "who" instead of "what".
    """
    found = sentences(extract)
    answer = found[0]
    for sentence in found[1:]:
        if len(answer) >= _ENOUGH or len(answer) + len(sentence) >= ANSWER_CHARACTERS:
            break
        answer += " " + sentence
    subject, verb = _subject(title, extract, found[0])
    phrasings = _WITH_VERB + _WITHOUT_VERB if verb else _WITHOUT_VERB
    choice = int.from_bytes(hashlib.blake2b(title.encode(), digest_size=4).digest(), "big") % len(phrasings)
    who = "Who" if person else "What"
    return phrasings[choice].format(who=who, who_lower=who.lower(), verb=verb, subject=subject), answer


def sentences(text: str) -> list[str]:
    """Split a text into sentences; initials and common abbreviations do not end one."""
    flat = " ".join(text.split())
    found, begin = [], 0
    for match in _SENTENCE_END.finditer(flat):
        sentence = flat[begin : match.start()].strip()
        if sentence and not _ABBREVIATION.search(sentence):
            found.append(flat[begin : match.end()].strip())
            begin = match.end()
    return [*found, flat[begin:].strip()] if flat[begin:].strip() else found


def _subject(title: str, extract: str, sentence: str) -> tuple[str, str]:
    """How the first sentence names its subject, and its verb; the title and no verb where it does not."""
    verb = _VERB.search(sentence)
    if verb is not None:
        subject = sentence[: verb.start()]
        if title.casefold() in subject.casefold() and len(subject) <= len(title) + 5 and "," not in subject:
            return _ARTICLE.sub(lambda m: m.group().lower(), subject), verb.group(1)
    common = title[0].lower() + title[1:]
    return (common if f" {common}" in extract else title), ""
