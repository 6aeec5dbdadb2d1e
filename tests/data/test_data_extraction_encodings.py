"""Texts in the world's encodings: told apart by their bytes, or by what a header declares where that can be true."""

import random

import pytest

from lmworks.data.extraction.encodings import decode_named
from lmworks.data.extraction.result import UnreadableError

TEXTS = {
    "zh-cn": "北京是中华人民共和国的首都，也是全国的政治、文化中心。这座城市有三千多年的历史，许多名胜古迹吸引",
    "zh-tw": "臺北是中華民國的首都，也是臺灣的政治、經濟與文化中心。這座城市融合了傳統與現代，夜市裡的小吃吸引",
    "ja": "東京は日本の首都であり、世界でも有数の大都市です。",
    "ko": "서울은 대한민국의 수도이며 가장 큰 도시이다.",
    "ru": "Москва является столицей России и крупнейшим городом страны.",
    "uk": "Київ є столицею України та найбільшим містом країни. Він розташований на берегах Дніпра.",
    "el": "Η Αθήνα είναι η πρωτεύουσα της Ελλάδας και η μεγαλύτερη πόλη της χώρας.",
    "tr": "Ankara Türkiye'nin başkentidir ve ülkenin ikinci büyük şehridir.",
    "he": "ירושלים היא עיר הבירה של מדינת ישראל והעיר הגדולה ביותר בה.",
    "ar": "القاهرة هي عاصمة جمهورية مصر العربية وأكبر مدنها.",
    "th": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทยและเป็นเมืองที่มีประชากรมากที่สุด ทุกปีมีนักท่องเที่ยวหลายล้าน",
    "pl": "Warszawa jest stolicą Polski i największym miastem kraju. Leży nad Wisłą.",
    "cs": "Praha je hlavní město České republiky a největší město v zemi. Leží na řece Vltavě.",
    "de": "Berlin ist die Hauptstadt Deutschlands und zugleich die größte Stadt des Landes.",
    "fr": "L'été, les quais de la Seine sont très animés, et l'on y danse jusqu'à minuit, où que l'on soit.",
    "es": "Madrid es la capital de España y la ciudad más grande del país.",
    "pt": "Lisboa é a capital de Portugal e a maior cidade do país.",
    "sv": "Stockholm är Sveriges huvudstad och landets största stad.",
    "lt": "Vilnius yra Lietuvos sostinė ir didžiausias šalies miestas.",
}  # fmt: skip
ENCODINGS = {
    "zh-cn": "gb18030 utf-16-le utf-16-be",
    "zh-tw": "big5hkscs",
    "ja": "cp932 euc_jp iso2022_jp utf-16-be",
    "ko": "cp949 johab utf-16-le iso2022_kr",
    "ru": "cp1251 koi8_r iso8859_5 cp866 mac_cyrillic",
    "uk": "cp1251 koi8_u",
    "el": "cp1253 iso8859_7",
    "tr": "cp1254",
    "he": "cp1255 iso8859_8",
    "ar": "cp1256 iso8859_6",
    "th": "cp874",
    "pl": "cp1250 iso8859_2",
    "cs": "cp1250 iso8859_2 cp852",
    "de": "cp1252 cp850 mac_roman utf-16-le utf-32-be",
    "fr": "cp1252 cp850",
    "es": "cp1252 mac_roman",
    "pt": "cp1252",
    "sv": "cp1252",
    "lt": "cp1257 iso8859_13",
}


@pytest.mark.parametrize(
    ("language", "encoding"), [(name, encoding) for name, all_ in ENCODINGS.items() for encoding in all_.split()]
)
def test_encodings_are_told_apart(language, encoding):
    text = "".join(c if c.encode(encoding, "ignore") else " " for c in TEXTS[language])
    assert decode_named(text.encode(encoding))[0] == text
    assert decode_named((f"{text}\n{'plain ' * 50}\n" * 100).encode(encoding))[0].count(text) == 100


@pytest.mark.parametrize(
    ("word", "encoding"),
    [("café", "cp1252"), ("Zürich", "cp1252"), ("señor", "cp1252"), ("Привет", "cp1251"), ("你好吗", "gb18030"),
     ("こんにちは", "cp932")],
)  # fmt: skip
def test_one_word_is_read_in_the_encoding_of_its_language(word, encoding):
    assert decode_named(word.encode(encoding))[0] == word


def test_a_declared_encoding_is_believed_where_it_can_be_true():
    data = "caf\xe9 \x93quoted\x94".encode("latin-1")
    assert decode_named(data, "iso-8859-1") == ("café “quoted”", "cp1252")
    assert decode_named("né".encode(), "cp1252")[0] == "né"
    assert decode_named("só".encode("cp1250"), "cp1250")[1] == "cp1250"
    assert decode_named("Ŝanĝo ĉiuĵaŭde".encode("iso8859_3"), "ISO-8859-3")[0] == "Ŝanĝo ĉiuĵaŭde"
    with pytest.raises(UnreadableError, match="binary"):
        decode_named(b"\x00\x01\x02\x03" * 40, "latin-1")


@pytest.mark.parametrize(("language", "encoding"), [("zh-cn", "gb18030"), ("ru", "cp1251"), ("ja", "euc_jp")])
@pytest.mark.parametrize("declared", ["iso-8859-1", "windows-1252", "no such", "rot13", "\0", "utf-8"])
def test_a_declaration_that_cannot_be_true_is_not_believed(language, encoding, declared):
    assert decode_named(TEXTS[language].encode(encoding), declared)[0] == TEXTS[language]


def test_seven_bits_are_shifted_where_that_is_said():
    assert decode_named("汉字，你好".encode("hz"), "hz-gb-2312")[0] == "汉字，你好"
    assert decode_named("Größe".encode("utf-7"), "UTF-7")[0] == "Größe"
    lisp = b'(format t "~{(~a)~}" list) \x1b[1m'
    assert decode_named(lisp) == (lisp.decode(), "utf-8")


def test_noise_and_damage_are_refused():
    chance = random.Random(0)
    for size in (300, 5000):
        for low in (32, 128):
            with pytest.raises(UnreadableError, match="no other encoding"):
                decode_named(bytes(chance.randrange(low, 256) for _ in range(size)))
        with pytest.raises(UnreadableError, match="binary"):
            decode_named(chance.randbytes(size))
    for declared in ("", "latin-1"):
        with pytest.raises(UnreadableError, match="the file is damaged"):
            decode_named("naïve café, déjà vu".encode() + b"\xff", declared)
