"""Rules for Chinese prose: those published for Chinese web text, and what Gopher and FineWeb ask of English.

The latter are asked of characters: n-grams are twice as long as those of English words, since a word has about two.
What is ours beside them: encodings, mixed scripts, Japanese. ChineseWebText's mean line of ten characters is left out:
it drops a third of the classical poems. Knows no word list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

from lmworks.data.cleaning.gopher import GOPHER
from lmworks.data.cleaning.published_measures import PublishedMeasures
from lmworks.data.cleaning.rules import OWN, Rule

WEB_TEXT = "ChineseWebText, Chen et al. 2023"
MAP_CC = "MAP-CC, Du et al. 2024"
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_SPACE = re.compile(r"\s")
_PUNCTUATION = re.compile("[，。！？；：、“”‘’（）《》〈〉「」『』【】…—,.!?;:()]")
_LINE_END = frozenset('。！？；：…”’」』）》.!?";:)')
# Pairs of frequent characters that are written differently: simplified, traditional.
_PAIRS = (
    "国國 会會 学學 说說 时時 来來 对對 为為 个個 们們 过過 这這 发發 经經 现現 开開 长長 问問 见見 进進 "
    "种種 实實 义義 关關 动動 两兩 样樣 头頭 当當 无無 电電 话話 车車 东東 马馬 鱼魚 鸟鳥 龙龍 门門 书書 "
    "买買 卖賣 语語 读讀 写寫 听聽 认認 识識 让讓 请請 万萬 业業 产產 华華 单單 图圖 场場 声聲 岁歲 师師 "
    "带帶 应應 张張 战戰 报報 数數 气氣 点點 热熱 爱愛 环環 线線 统統 给給 维維 网網 联聯 职職 脑腦 节節 "
    "药藥 虽雖 观觀 规規 视視 觉覺 计計 记記 设設 评評 词詞 试試 该該 谁誰 调調 谈談 质質 贵貴 费費 资資 "
    "轻輕 较較 达達 运運 还還 连連 远遠 选選 错錯 钱錢 银銀 铁鐵 间間 难難 题題 风風 飞飛 饭飯 馆館 验驗 "
)
_SIMPLIFIED, _TRADITIONAL = (re.compile(f"[{''.join(pair[at] for pair in _PAIRS.split())}]") for at in (0, 1))
_KANA = re.compile("[\u3040-\u30ff]")
_BRACKETS = re.compile("【(.*?)】")
_READ_MORE = ("readmore", "read more", "展开", "展開", "更多", "全文", "。。。")
_FREQUENT = "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年"


def _common(character: str) -> bool:
    """Whether a character stands among the frequent ones of a national standard: GB 2312's first level, or Big5's."""
    for encoding, last in (("gb2312", 0xD7), ("big5", 0xC6)):
        with suppress(UnicodeEncodeError):
            if character.encode(encoding)[0] <= last:
                return True
    return False


def _misread() -> str:
    """What frequent characters look like after their UTF-8 was read as GBK, without what is common in real text."""
    pairs = "".join(first + second for first in _FREQUENT for second in _FREQUENT)
    found = {c for at in range(0, len(pairs), 2) for c in pairs[at : at + 2].encode().decode("gbk", errors="ignore")}
    return "".join(sorted(c for c in found if _HAN.match(c) and not _common(c)))


_MISREAD = re.compile(f"[{_misread()}]")
# What decoders leave behind.
_REMAINS = re.compile("锟斤拷|烫烫烫|屯屯屯|\ufffd")


def han_share(text: str) -> float:
    """Share of Han characters among those that are not white space."""
    return len(_HAN.findall(text)) / max(len(_SPACE.sub("", text)), 1)


def script_mixture(text: str) -> float:
    """Share of the rarer way of writing among the characters that tell, taken for ten at least; between 0 and 0.5."""
    simplified, traditional = len(_SIMPLIFIED.findall(text)), len(_TRADITIONAL.findall(text))
    return min(simplified, traditional) / max(simplified + traditional, 10)  # an old poem may hold a variant or two


def misread_share(text: str) -> float:
    """Share of Han characters that UTF-8 read as GBK leaves, weighed up by replacement characters."""
    return (len(_MISREAD.findall(text)) + 10 * len(_REMAINS.findall(text))) / max(len(_HAN.findall(text)), 1)


def punctuation_share(text: str) -> float:
    """Share of punctuation among characters that are not white space."""
    return len(_PUNCTUATION.findall(text)) / max(len(_SPACE.sub("", text)), 1)


def kana_share(text: str) -> float:
    """Share of kana among Han characters and kana: Japanese has half and more."""
    kana = len(_KANA.findall(text))
    return kana / max(kana + len(_HAN.findall(text)), 1)


def digit_share(text: str) -> float:
    """Share of digits among letters, Han characters and digits."""
    return sum(map(str.isdigit, text)) / max(sum(map(str.isalnum, text)), 1)


def bracketed_share(text: str) -> float:
    """Share of the characters that stand in 【】, as headings of advertisements do."""
    return sum(map(len, _BRACKETS.findall(text))) / max(len(text), 1)


def _line_ends(m: PublishedMeasures) -> float:
    return sum(line.rstrip()[-1] in _LINE_END for line in m.filled_lines) / max(len(m.filled_lines), 1)


def _read_more(m: PublishedMeasures) -> float:
    return sum(line.lower().endswith(_READ_MORE) for line in m.lines) / max(len(m.lines), 1)


def _top(n: int) -> Callable[[PublishedMeasures], float]:
    def share(m: PublishedMeasures) -> float:
        # In a short text even an n-gram that occurs once is a large share; that is no repetition.
        grams = m.character_ngrams
        return _words(grams.top(n), n) / max(len(m.text), 1) if grams.repeats(n) else 0.0

    return share


def _words(joined: int, n: int) -> float:
    """Characters of the most frequent n-gram without the spaces that words are joined with."""
    return joined * n / (2 * n - 1)


def _repeated(n: int) -> Callable[[PublishedMeasures], float]:
    return lambda m: m.character_ngrams.repeated(n) / max(len(m.text), 1)


CHINESE = (
    Rule("chinese_characters", lambda m: len(_HAN.findall(m.text)), 50, 200_000, OWN),
    Rule("han_share", lambda m: han_share(m.text), low=0.3, source=WEB_TEXT),
    Rule("japanese", lambda m: kana_share(m.text), high=0.2, source=OWN),
    Rule("misread_encoding", lambda m: misread_share(m.text), high=0.07, source=OWN),
    Rule("mixed_scripts", lambda m: script_mixture(m.text), high=0.2, source=OWN),
    Rule("chinese_punctuation", lambda m: punctuation_share(m.text), 0.02, 0.35, OWN),
    Rule("chinese_digits", lambda m: digit_share(m.text), high=0.3, source=MAP_CC),
    Rule("chinese_brackets", lambda m: bracketed_share(m.text), high=0.1, source=MAP_CC),
    Rule("chinese_line_ends", _line_ends, low=0.12, source=OWN),
    Rule("chinese_bullet_lines", lambda m: m.bullet_lines, high=0.9, source=MAP_CC),
    Rule("chinese_ellipsis_lines", lambda m: m.ellipsis_lines, high=0.3, source=GOPHER),
    Rule("chinese_read_more", _read_more, high=0.3, source=MAP_CC),
    Rule("chinese_paragraphs", lambda m: m.paragraph_repeats(in_characters=True), high=0.2, source=OWN),
    Rule("chinese_lines", lambda m: m.line_repeats(in_characters=True), high=0.2, source=OWN),
    *(Rule(f"top_{n}_characters", _top(n), high=high, source=OWN) for n, high in ((4, 0.2), (6, 0.18), (8, 0.16))),
    *(
        Rule(f"repeated_{n}_characters", _repeated(n), high=high, source=OWN)
        for n, high in ((10, 0.15), (12, 0.14), (14, 0.13), (16, 0.12), (18, 0.11), (20, 0.10))
    ),
)
