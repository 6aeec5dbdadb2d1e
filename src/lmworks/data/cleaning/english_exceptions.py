"""English words that the rules of punctuation would cut in the wrong place: contractions, abbreviations, emoticons.

The forms are those of spaCy's English tokenizer, whose words the published filter recipes count; a test compares them.
Knows no text.
"""

from __future__ import annotations

from collections.abc import Iterator

_CLITICS = {
    "i": ("'d", "'d've", "'ll", "'ll've", "'m", "'m a", "'ve"),
    **dict.fromkeys(("you", "we", "they"), ("'d", "'d've", "'ll", "'ll've", "'re", "'ve")),
    **dict.fromkeys(("he", "she", "it"), ("'d", "'d've", "'ll", "'ll've", "'s")),
    **dict.fromkeys(("who", "what", "when", "where", "why", "how"),
                    ("'d", "'d've", "'ll", "'ll've", "'re", "'s", "'ve")),
    **dict.fromkeys(("that", "this"), ("'d", "'d've", "'ll", "'ll've", "'s")),
    **dict.fromkeys(("these", "those"), ("'d", "'d've", "'ll", "'ll've", "'re", "'ve")),
    "there": ("'d", "'d've", "'ll", "'ll've", "'re", "'s", "'ve"),
    **dict.fromkeys(("could", "might", "must", "should", "would", "not"), ("'ve",)),
    **dict.fromkeys(("ca", "could", "did", "does", "do", "had", "may", "might", "must", "need", "ought", "sha",
                     "should", "wo", "would"), ("n't", "n't've")),
    **dict.fromkeys(("ai", "are", "dare", "has", "have", "is", "was", "were"), ("n't",)),
}  # fmt: skip
for _base in ("could", "might", "must", "should", "would"):
    _CLITICS[_base] = ("'ve", "n't", "n't've")
_WITHOUT_APOSTROPHE_A_WORD = {"ill", "shell", "hell", "well", "were", "shed", "its", "whore"}

_ABBREVIATIONS = """
Adm. Ak. Ala. Apr. Ariz. Ark. Aug. Bros. C++ Calif. Co. Colo. Conn. Corp. D.C. Dec. Del. Dr. E.G. E.g. Feb. Fla. Ga.
Gen. Gov. I.E. I.e. Ia. Id. Ill. Inc. Ind. Jan. Jr. Jul. Jun. Kan. Kans. Ky. La. Ltd. Mar. Mass. Md. Messrs. Mich. Minn.
Miss. Mo. Mont. Mr. Mrs. Ms. Mt. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. Ph.D. Prof. Rep.
Rev. S.C. Sen. Sep. Sept. St. Tenn. Va. Wash. Wis. a.m. p.m. e.g. i.e. v.s. vs. co. ä. ö. ü. and/or w/o
"""
_DROPPED_LETTERS = "doin goin havin lovin nothin nuthin somethin ol"
_EMOTICONS = r"""
(*_*) (-8 (-: (-; (-_-) (._.) (: (; (= (>_<) (^_^) (o: (¬_¬) (ಠ_ಠ) (╯°□°）╯︵┻━┻ )-: ): -_- -__- ._. 0.0 0.o 0_0
0_o 8) 8-) 8-D 8D :( :(( :((( :() :) :)) :))) :* :-( :-(( :-((( :-) :-)) :-))) :-* :-/ :-0 :-3 :-> :-D :-O :-P
:-X :-] :-o :-p :-x :-| :-} :/ :0 :1 :3 :> :D :O :P :X :] :o :o) :p :x :| :} ;) ;-) ;-D ;D ;_; <.< </3 <3 <33
<333 <space> =( =) =/ =3 =D =[ =] =| >.< >.> >:( >:o ><(((*> @_@ O.O O.o O_O O_o V.V V_V XD XDD [-: [: [= \") \n
\t ]= ^_^ ^__^ ^___^ o.0 o.O o.o o_0 o_O o_o v.v v_v xD xDD ¯\(ツ)/¯ ಠ_ಠ ಠ︵ಠ :'( :') :'-( :'-) :’( :’) :’-( :’-)
— ' ’ '' ’’
"""


def exceptions() -> dict[str, tuple[str, ...]]:
    """Each form and the words it is cut into."""
    found: dict[str, tuple[str, ...]] = {word: (word,) for word in (*_ABBREVIATIONS.split(), *_EMOTICONS.split())}
    found |= {f"{letter}.": (f"{letter}.",) for letter in "abcdefghijklmnopqrstuvwxyz"}
    found |= {f"°{unit}.": ("°", unit, ".") for unit in "CFKcfk"}
    for word in (*_DROPPED_LETTERS.split(), "em", "nuff", "ll"):
        found[word] = (word,)
    for word in _DROPPED_LETTERS.split():
        found |= {form: (form,) for form in _cased(f"{word}'")} | {form: (form,) for form in _cased(word)}
    for word in ("ma'am", "o'clock", "'cause", "'cos", "'coz", "'cuz", "'s"):
        found |= {form: (form,) for form in _cased(word)}
    for word in ("'bout", "'d", "'em", "'ll", "'nuff", "'re"):
        found |= {form: (form,) for form in _curled(word)}
    found |= {"‘s": ("‘s",), "‘S": ("‘S",)}
    for hour in range(1, 13):
        found |= {f"{hour}{half}": (str(hour), half) for half in ("am", "pm", "a.m.", "p.m.")}
    for parts in _contractions():
        found["".join(parts)] = parts
    return found


def _contractions() -> Iterator[tuple[str, ...]]:
    forms: list[tuple[str, ...]] = [("can", "not"), ("gon", "na"), ("got", "ta"), ("let", "'s"), ("c'm", "on"),
                                    ("how", "'d", "'y"), ("y'", "all")]  # fmt: skip
    for base, clitics in _CLITICS.items():
        forms += [(base, *clitic.replace("'d've", "'d 've").replace("'ll've", "'ll 've").replace("n't've", "n't 've")
                   .split()) for clitic in clitics]  # fmt: skip
    for parts in forms:
        plain = tuple(part.replace("'", "") for part in parts)
        written = [parts]
        if "".join(plain) not in _WITHOUT_APOSTROPHE_A_WORD and " ".join(parts[:2]) not in {"let 's", "c'm on"}:
            written += [plain] if parts[:3] != ("how", "'d", "'y") else []
        for form in written:
            for first in {form[0], form[0].capitalize()} - ({"Y'", "Y"} if form[-1] == "all" else set()):
                cased = (first, *form[1:])
                yield cased
                yield tuple(part.replace("'", "’") for part in cased)


def _cased(word: str) -> Iterator[str]:
    """As written and with its first letter large."""
    at = 1 if word.startswith("'") else 0
    for form in (word, word[:at] + word[at:].capitalize()):
        yield from _curled(form)


def _curled(word: str) -> Iterator[str]:
    yield word
    yield word.replace("'", "’")
