"""In which of the world's older encodings bytes are: the one whose decoding is likeliest as some language's writing.

A language is known by the letters it writes beyond ASCII, from frequent to rare, and East Asian ones by the common
characters and those of the first level of their standards. Each encoding that decodes the bytes is scored by the log
likelihood of what comes out, under the language that fits it best; one that fits no language is not believed.
Knows no byte order marks and no format.
"""

from __future__ import annotations

import codecs
import math
import re
from collections import Counter
from functools import cache

_ALPHABETS = (
    "éèàêçôûîùâïœëüÿæ", "üäößé", "óíáéñúü", "ãçáéíóêâõúàô", "èàùòìé", "äöåé", "øåæéöü", "ëéïèóöü", "íáðéóúöýþæ",
    "àéèóçíòúïü", "äõüöšž", "łąężśóćńź", "íáéěřčžýšůúťďňóö", "áíéčýžúšľťôňäóďĺŕ", "éáöóőüíúű", "čšžćđ", "ăîâșțşţ",
    "ëç", "ıüşçğöâîû", "ėšųįžąčūę", "āīēūšņļžģčķ", "ĝĉŭŝĵĥ", "żħàġċèìòù",
    "\u0301\u0300đâ\u0323ưêôăơ\u0309\u0303áàãéèêíóòõúùý",
    "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё", "оаиніветрслкдумпязьбгчйхцїжюєшщфґ", "аоиетнрсвдкплмзъугчбцщхяжшьйюф",
    "аоиетнрсвкдујмлпзгбшчцћжхђљњџфќѓѕ", "аеоінртсклдуяывпзмгйбьцчўхжшюёэф", "αοιετσνρκπυμλςήίόάέωγδχθύφηώξζβψϊΐϋ",
    "יוהלאמרתבשנעדקחפםצגכטזסןךץף", "اليمنترويبةدسعفقكحجأشصطىهخضذزثغئءإآؤظ،؟", "ایرندهمتوسبشکزگلفخقعجپحصغژطضچئذثظء،",
    "านรกเองมยลวดสตทะัปบค่หพีไชขิ้จแ์ใโถศือุูำธณผญซฟฉฐภษๆฎฏฆฮ",
)  # fmt: skip
"""Letters beyond ASCII of languages, the frequent ones first: of each their share falls by some exp(4) to the last."""
_EAST_ASIAN = (
    ("gb2312", range(0xB0, 0xD8), range(0xA1, 0xFF),
     "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方"
     "多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情"
     "明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给"),
    ("big5", range(0xA4, 0xC7), (*range(0x40, 0x7F), *range(0xA1, 0xFF)),
     "的一是不了在人有我他這個們中來上大為和國地到以說時要就出會可也你對生能而子那得於著下自之年過發後作裡用道行所然家種事成方"
     "多經麼去法學如都同現當沒動面起看定天分還進好小部其些主樣理心她本前開但因只從想實日軍者意無力它與長把機十民第公此已工使情"
     "明性知全三又關點正業外將兩高間由問很最重並物手應戰向頭文體政美相見被利什二等產或新己制身果加西斯月話合回特代內信表化老給"),
    ("euc_jp", range(0xB0, 0xD0), range(0xA1, 0xFF),
     "日一国会人年大十二本中長出三同時政事自行社見月分議後前民生連五発間対上部東者党地合市業内相方四定今回新場金員九入選立開手"),
    ("euc_kr", range(0xB0, 0xC9), range(0xA1, 0xFF), "이다는에의을가고하지로한은서를기도인나사대아어리수"),
)  # fmt: skip
"""A standard, the bytes of its first level, and characters that make up half of what is written in it."""
_COMMON_SHARE, _LEVEL_SHARE = 0.5, 0.4
_KANA = {**dict.fromkeys(map(chr, range(0x3041, 0x3097)), math.log(0.5 / 83)),
         **dict.fromkeys(map(chr, range(0x30A1, 0x30FB)), math.log(0.1 / 86))}  # fmt: skip
_SIGNS = frozenset("“”‘’„‚«»‹›–—…•·°§©®™€£¿¡ºª²³½¼¾×±¶´\u00a0\u00ad")
_EAST_ASIAN_SIGNS = frozenset("、。，；：？！「」『』（）《》【】〈〉〔〕・ー～〜·“”‘’…—\u3000")
_BETWEEN_LETTERS = frozenset("’‘´·\u00ad・ー")
_SIGN, _CAPITAL, _FOREIGN, _RARE, _IMPOSSIBLE = -5.0, -1.5, -10.0, -13.0, -15.0
_MISPLACED = -5.0
_NEIGHBORS = re.compile(r"(?<=(.))([^\x00-\x7f])(?=(.))")
_ASCII_OF_WIDE = -3.0
"""Of a letter in UTF-16; elsewhere ASCII costs nothing, as all decodings agree on it."""
_IDEOGRAPHIC = re.compile("[\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff00-\uffef]")
_HIGH = re.compile(rb"[\x80-\xff]")

_PRIORS = {
    **dict.fromkeys(("cp1252", "cp1251", "gb18030", "big5hkscs", "cp932", "euc_jp", "cp949"), 0.0),
    **dict.fromkeys(("koi8_r", "koi8_u", "cp1250", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp874"), -1.0),
    **dict.fromkeys(("iso8859_15", "iso8859_2", "iso8859_5", "iso8859_6", "iso8859_7", "iso8859_8", "cp866"), -2.0),
    **dict.fromkeys(("iso8859_13", "mac_cyrillic", "mac_roman", "cp850", "cp852", "cp1258", "johab"), -4.0),
}  # fmt: skip
"""Encodings and how much rarer than others they are; of two that fit alike the first is named."""
_WIDE = ("utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be")
_DECLARED_PRIOR = 20.0
_LEAST, _LEAST_IDEOGRAPHIC = -6.5, -9.5
"""Mean log likelihood of a character below which a decoding is not writing."""
_SAMPLE = 1 << 12


def likeliest(data: bytes, declared: str = "", *, wide_only: bool = False) -> tuple[str, str] | None:
    """The text, and Python's name of the encoding it is in; None where no encoding makes it writing.

    Args:
        data: bytes beyond ASCII that are no UTF-8.
        declared: the encoding that a header told; believed unless its text is no writing and another's is.
        wide_only: only UTF-16 and UTF-32 come into question, since there are NULs.
    """
    tried = []
    if not wide_only:
        sample, cut = _sample(data)
        tried = [(encoding, sample, cut) for encoding in dict.fromkeys((declared, *_PRIORS)) if encoding]
    if len(data) % 2 == 0:
        tried += [(encoding, data[: _SAMPLE & ~3], len(data) > _SAMPLE & ~3) for encoding in _WIDE]
    scored = []
    for encoding, sample, cut in tried:
        if (found := _score(sample, encoding, cut)) is not None and (found[0] or encoding == declared):
            prior = _DECLARED_PRIOR if encoding == declared else _PRIORS.get(encoding, 0.0)
            scored.append((found[0], found[1] + prior, encoding))
    for _, _, encoding in sorted(scored, key=lambda item: item[:2], reverse=True):  # stable: of the same, the first
        try:
            return data.decode(encoding), encoding
        except UnicodeError:
            continue
    return None


def _sample(data: bytes) -> tuple[bytes, bool]:
    """Lines that hold bytes beyond ASCII, and whether the last one is cut off; where they begin no character is cut."""
    pieces, size, place = [], 0, 0
    while (high := _HIGH.search(data, place)) is not None:
        begin = max(data.rfind(b"\n", place, high.start()) + 1, high.start() - 40, place)
        end = data.find(b"\n", high.start()) + 1 or len(data)
        pieces.append(data[begin : min(end, begin + _SAMPLE - size)])
        size += len(pieces[-1])
        place = end
        if size >= _SAMPLE:
            break
    return b"".join(pieces), size >= _SAMPLE


def _score(sample: bytes, encoding: str, cut: bool) -> tuple[bool, float] | None:
    """Whether it is writing, and its log likelihood; None where the bytes are not in this encoding."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample, final=not cut)
    except UnicodeError:
        return None
    counts = Counter(text)
    if encoding in _WIDE and any(character < " " and character not in "\t\n\f\r" for character in counts):
        return None
    beyond = {character: n for character, n in counts.items() if character > "\x7f"}
    many = sum(beyond.values())
    ideographic = sum(n for character, n in beyond.items() if _IDEOGRAPHIC.match(character)) > many / 2
    models = _ideographic_models() if ideographic else _alphabetic_models()
    unknown = {character: _unknown(character) for character in beyond}
    total = max(sum(n * model.get(c, unknown[c]) for c, n in beyond.items()) for model in models) + _misplaced(text)
    is_writing = total >= (_LEAST_IDEOGRAPHIC if ideographic else _LEAST) * many
    return is_writing, total + (_ASCII_OF_WIDE * (len(text) - many) if encoding in _WIDE else 0.0)


def _unknown(character: str) -> float:
    if character in _SIGNS:
        return _SIGN
    return (_RARE if _IDEOGRAPHIC.match(character) else _FOREIGN) if character.isprintable() else _IMPOSSIBLE


def _misplaced(text: str) -> float:
    """What capitals behind small letters cost, signs between letters, and other scripts within a word of ASCII."""
    cost = 0.0
    for found in _NEIGHBORS.finditer(text):
        before, character, after = found[1], found[2], found[3]
        if before.islower() and character.isupper():
            cost += _MISPLACED
        elif not character.isalpha():
            within = before.isalpha() and after.isalpha() and not _IDEOGRAPHIC.match(before + after)
            cost += _MISPLACED * (within and character not in _BETWEEN_LETTERS)
        elif character >= "\u0370":
            of_ascii = [neighbor.isascii() and neighbor.isalpha() for neighbor in (before, after)]
            cost += _MISPLACED * (any(of_ascii) if character < "\u0700" else all(of_ascii))
    return cost


@cache
def _alphabetic_models() -> tuple[dict[str, float], ...]:
    """Log probabilities of the characters of each alphabet."""
    made = []
    for letters in _ALPHABETS:
        weights = [math.exp(-4 * rank / len(letters)) for rank in range(len(letters))]
        whole = sum(weights) + 1  # a few letters tell less of a language than many
        model = {letter: math.log(weight / whole) for letter, weight in zip(letters, weights, strict=True)}
        capitals = {letter.upper(): p + _CAPITAL for letter, p in model.items() if len(letter.upper()) == 1}
        made.append(capitals | model)
    return tuple(made)


@cache
def _ideographic_models() -> tuple[dict[str, float], ...]:
    """The same of East Asian languages."""
    made = []
    for standard, leads, trails, common in _EAST_ASIAN:
        level = [bytes((lead, trail)).decode(standard, "ignore") for lead in leads for trail in trails]
        model = dict.fromkeys(_EAST_ASIAN_SIGNS, _SIGN) | dict.fromkeys(level, math.log(_LEVEL_SHARE / len(level)))
        if standard == "euc_jp":
            model |= _KANA
        made.append(model | dict.fromkeys(common, math.log(_COMMON_SHARE / len(common))))
    return tuple(made)
