"""Sets of punctuation that published filter rules are defined by. Knows no rule."""

from __future__ import annotations


def _characters(ranges: str) -> frozenset[str]:
    """The characters of hexadecimal code points and ranges of them."""
    ends = (part.partition("-") for part in ranges.split())
    return frozenset(chr(c) for first, _, last in ends for c in range(int(first, 16), int(last or first, 16) + 1))


# Unicode's property Sentence_Terminal, as of the sentence splitter that C4's rule is applied with …
SENTENCE_ENDS = _characters(
    "0021 002e 003f 0589 061f 06d4 0700-0702 07f9 083d 0964-0965 104a-104b 1362 1367-1368 166e 1735-1736 1803 1809 "
    "1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 3002 a4ff a60e-a60f a6f3 "
    "a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f ff61 "
    "10a56-10a57 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 "
    "1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11a42-11a43 11a9b-11a9c 11c41-11c42 16a6e-16a6f "
    "16af5 16b37-16b38 16b44 1bc9f 1da88"
) - _characters("083d 1945") | _characters("1944-1945")
# … and with the additions of later versions of Unicode and of FineWeb: what a line may end with.
LINE_ENDS = SENTENCE_ENDS | _characters(
    "061d-061e 0837 0839 083d-083e 17d4-17d6 17d9-17da 1944-1945 1b7d-1b7e 2e53-2e54 10f55-10f59 10f86-10f89 11944 "
    "11946 11ef7-11ef8 11f43-11f44 16e98"
)
# A word of these alone is no word to Gopher's counts.
SYMBOLS = (
    LINE_ENDS
    | frozenset("!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»")
    | _characters("0000-0008 000b-000c 000d-001f 007f-009f")
)
