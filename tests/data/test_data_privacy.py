"""Personal data and secrets are found where they are, not elsewhere, and replaced the same way in any order."""

import base64
import json
import pickle
import random
import re
import stat
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmworks.core.config import Config
from lmworks.core.errors import ConfigError, DataError
from lmworks.core.generation import Document
from lmworks.data.corpus.prepare import PrepareConfig, prepare
from lmworks.data.privacy import checks
from lmworks.data.privacy.detectors import search
from lmworks.data.privacy.redact import PiiConfig, RedactStep, detectors_of, privacy_report, redaction_steps
from lmworks.data.privacy.replacements import canonical, label, masked, read_key, surrogate
from lmworks.data.privacy.vault import Vault, read_vault, vault_path, write_vault
from lmworks.data.steps import Dropped, Tally

DETECTORS = detectors_of(PiiConfig())
KEY = b"0123456789abcdef"


def found(text):
    return [(f.kind, text[f.start : f.end]) for f in search(text, DETECTORS)]


LABELLED = {
    "EMAIL_ADDRESS": ["mail ada.l+x@math.example.org.", "写信给li@例.中国 or li@example.cn谢谢", "<a_b@x-y.co.uk>"],
    "PHONE_NUMBER": [
        "Call (212) 555-0187 now", "拨打 13912345678 咨询",
        "name,phone,age\nLi,+33 6 34 01 39 70,44", "17,+44 20 7946 0958", "+33 (0)5 81 06 67 12",
        "| M: 9498777106 E: x",
        "телефон 8 495 123 45 67", "聯絡電話：02-2345-6789", "전화 02-345-6789", "Téléphone : 0390695165",
        "tel: 020 7946 0958", "手机13812345678，谢谢", "+86 138 1234 5678", "+49 30 901820",
        "电话：010-62345678", "Fax 03 44 55 66 77", "+1-984-182-0190 x42", "reach me at 9498777106",
    ],
    "CN_ID": ["身份证号11010519491231002X。", "id 440524198001010013 here"],
    "US_SSN": ["SSN 219-09-9999", "my social security number is 219099999"],
    "IBAN_CODE": ["to DE89 3704 0044 0532 0130 00 please", "GB82WEST12345698765432",
                  "auf DE89 3704 0044 0532 0130 00 bis zum 3."],
    "CREDIT_CARD": ["4111 1111 1111 1111", "paid with 378282246310005.", "卡号6222021234567890128"],
    "IP_ADDRESS": [
        "client=93.184.216.34 ok", '8.8.4.4 - - [2024-01-31T10:00:00] "GET /"', "8.8.4.4:53",
        "from 8.8.8.8", "host 203.113.45.67:8080", "2a00:1450:4001:81b::200e answered", "http://93.184.216.34/",
    ],
    "MAC_ADDRESS": ["eth0 00:1B:44:11:3A:B7 up", "00-1b-44-11-3a-b7"],
    "PASSPORT": ["Passport No. X1234567", "护照号码：E12345678"],
    "CN_PLATE": ["车牌京A12345停在", "沪A·D12345", "渝B-87473", "川A 1234X"],
}  # fmt: skip
CLEAN = [
    "version 1.2.3.4 and v10.0.19045.3803, section 3.2.1.4", "编号1234567890123456元",
    "package-4.18.0.193 was released",
    "10.0.0.1 and 192.168.1.1",
    "at 12:30:45 on 2024-01-31", "the years 1998-2004 and 1971 – 2000", "ISBN 978-3-16-148410-0",
    "pi is 3.14159265358979",
    "std::vector<a::b::c> x", "@decorator\ndef f(): ...", "icon@2x.png", "git commit 5d41402abc4b2a76b9719d911017c592",
    "4111 1111 1111 1112", "666-12-3456 and 219-00-9999", "11010519491231002A 110105194913310021", "1234567890123456",
    "FF:FF:FF:FF:FF:FF", "total 12345678901", "GB82WEST12345698765431", "$1,234,567.89", "48 (2010) 658–667",
    "x = 8.2.4.44", "upgraded from 8.8.4.4", "version=93.184.216.34", "M2.83-2.12 3.51.98.32 2.03.5 3.11",
    "call on 20240131",
    "in the period (1625–1675), called", "Vol. 1 (1886–1893) text", "2018 (2018-05-21) call",
    "call the 1996--1997 crisis",
    "Public Law 91-135 (1969)", "Section 23-31-210", "phone order 15880996372 shipped",
    "订单15880996372", "48.137154, 11.575382 (519 m) call", "RFC 7231 7.1.2",
    "Suite 12\nAustin, TX 78701-7734\nphone: none", "bbox 8 0 0 0 0 0 0 0 3", "x = a + 81.3209534450553",
    "passport control", "0x7fffffff 1000000000000000",
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in LABELLED.items() for text in texts])
def test_each_kind_is_found(kind, text):
    assert kind in {name for name, _ in found(text)}, found(text)


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_alike_is_not(text):
    assert found(text) == []


def test_precision_and_recall_on_a_labelled_mixture():
    """Every labelled example in running text: nothing else is found, and nothing is missed."""
    rng = random.Random(0)
    hits, wanted, told = 0, 0, 0
    for _ in range(100):
        kind = rng.choice(list(LABELLED))
        text = " \n ".join([rng.choice(CLEAN), rng.choice(LABELLED[kind]), rng.choice(CLEAN)])
        kinds = Counter(name for name, _ in found(text))
        hits, wanted, told = hits + min(kinds[kind], 1), wanted + 1, told + min(len(kinds), 2)
    assert hits / wanted >= 0.97
    assert hits / told >= 0.95


def made(*parts):
    """A token put together here, so that no file holds one."""
    return "".join(parts)


RANDOM = "q7Zk2LmX9vB4tR8sN1wY6cE3hJ5dF0gP"
SECRET_TEXTS = {
    "PRIVATE_KEY": made("-----BEGIN RSA ", "PRIVATE KEY-----\n", RANDOM * 3, "\n-----END RSA ", "PRIVATE KEY-----"),
    "AWS_ACCESS_KEY": made("AKIA", "Q7ZK2LMX4VB4TR5S"),
    "AWS_SECRET_KEY": made("aws_secret_access_key = ", RANDOM, "a/+b3Kx9"),
    "GITHUB_TOKEN": made("ghp_", RANDOM, "abcd"),
    "GITLAB_TOKEN": made("glpat-", RANDOM[:20]),
    "SLACK_TOKEN": made("xoxb-", "2345678901-", RANDOM),
    "GOOGLE_API_KEY": made("AIza", RANDOM, "xyz"),
    "API_KEY": made("sk-proj-", RANDOM),
    "JWT": ".".join(
        base64.urlsafe_b64encode(part).decode().rstrip("=")
        for part in (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"12345","name":"x"}', b"0123456789abcdef0123")
    ),
    "CONNECTION_PASSWORD": made("postgres://app:", "s3cr3tpw", "@db.internal:5432/x"),
    "ASSIGNED_SECRET": made('db_password = "', RANDOM[:14], '"'),
}


BARE = made("zK9x", "Hwry50JzNbxB1")


@pytest.mark.parametrize(
    "text",
    [
        f"DEBUG=1\nDB_PASSWORD={BARE}\nPORT=1", f"export API_TOKEN={BARE}  # mine", f"  password: {BARE}\r\n  user: x",
        f"- REDIS_PASSWORD={BARE}", f"mysql --password={BARE} -u root", f"https://x.org/a?access_token={BARE}&b=1",
        "DB_PASSWORD=^455Pk5QW(", "password = 'hunt3r22'",
    ],
)  # fmt: skip
def test_passwords_are_found_where_settings_and_commands_have_them(text):
    ((kind, _),) = found(text)
    assert kind == "ASSIGNED_SECRET"


@pytest.mark.parametrize(
    "code",
    [
        "token = tokenizer2.encode(text)", "    password=self.password_2,", "secret_key = config.secret_key2",
        "password: str",
        "token = Tokenizer2(", "private_key_path = /etc/ssl/Key22.pem", "SECRET_URL=https://Vault22.example/v1/x",
        "DB_PASSWORD=$DB_PASSWORD2", "password = newPassword2", "token: typing.Optional[bytes],",
        "TOKEN_LIMIT=100000000",
    ],
)  # fmt: skip
def test_code_that_assigns_names_and_calls_holds_no_secret(code):
    assert found(code) == []


@pytest.mark.parametrize("kind", SECRET_TEXTS)
def test_secrets_are_found(kind):
    assert kind in {name for name, _ in found(f"settings:\n  {SECRET_TEXTS[kind]}\nend")}


@pytest.mark.parametrize(
    "text",
    [
        'password = "changeme"', 'token = "<your token here>"', "password = os.environ['PASSWORD']",
        'api_key = "${API_KEY}"',
        "postgres://user:password@localhost/db", "the secret: be kind",
        'tokenizer = "sentencepiece"', "sk-learn-contrib-package",
        made("AKIA", "IOSFODNN7EXAMPLE"), "-----BEGIN PUBLIC KEY-----",
    ],
)  # fmt: skip
def test_placeholders_are_no_secrets(text):
    assert found(text) == []


def run(config, text, tally=None):
    (step,) = redaction_steps(config)
    return step(Document("d", text), tally or Tally())


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "key"
    file.write_bytes(KEY)
    return file


def test_the_rest_of_the_text_stays_and_everything_is_counted_masked():
    tally = Tally()
    text = "Write to ada@example.org or call +49 30 901820; ada@example.org is best."
    outcome = run(PiiConfig(), text, tally)
    assert outcome.text == "Write to <EMAIL_ADDRESS> or call <PHONE_NUMBER>; <EMAIL_ADDRESS> is best."
    report = {row["kind"]: row for row in privacy_report(tally)}
    assert {kind: row["found"] for kind, row in report.items()} == {"EMAIL_ADDRESS": 2, "PHONE_NUMBER": 1}
    assert report["EMAIL_ADDRESS"]["samples"][0]["masked"] == "a••@•••••••.•••"
    assert "ada@" not in json.dumps(tally.to_dict())
    assert run(PiiConfig(), "nothing here").text == "nothing here"


@pytest.mark.parametrize(("secrets", "outcome"), [("replace", "<GITHUB_TOKEN>"), ("flag", None), ("ignore", None)])
def test_secrets_are_replaced_marked_or_left(secrets, outcome):
    text = f"key {SECRET_TEXTS['GITHUB_TOKEN']} end"
    document = run(PiiConfig(secrets=secrets), text)
    assert document.text == (f"key {outcome} end" if outcome else text)
    assert document.meta == ({"secrets": {"GITHUB_TOKEN": 1}} if secrets == "flag" else {})


def test_facts_and_sources_are_redacted_as_texts_are():
    (step,) = redaction_steps(PiiConfig(replacement="token"))
    facts = {
        "title": "To ada@x.example.org",
        "url": "https://e.org/?u=ada@x.example.org",
        "n": 3,
        "to": ["ada@x.example.org"],
    }
    tally = Tally()
    made = step(Document("d", "clean", "https://e.org/ada@x.example.org", meta=facts), tally)
    assert made.source == "https://e.org/<EMAIL_ADDRESS>"
    assert made.meta == {
        "title": "To <EMAIL_ADDRESS>", "url": "https://e.org/?u=<EMAIL_ADDRESS>", "n": 3, "to": ["<EMAIL_ADDRESS>"],
    }  # fmt: skip
    assert "ada@" not in json.dumps(privacy_report(tally))


def test_a_document_with_a_secret_can_be_dropped():
    assert run(PiiConfig(secrets="drop"), SECRET_TEXTS["JWT"]) == Dropped("pii/secret", 1.0)


def test_listed_names_are_replaced_whole(tmp_path):
    (tmp_path / "names").write_text("Ada Lovelace\n李明\nAda\n", encoding="utf-8")
    config = PiiConfig(kinds=(), names=tmp_path / "names")
    text = "Ada Lovelace, Ada and Adam met 李明先生."
    assert run(config, text).text == "<PERSON>, <PERSON> and Adam met <PERSON>先生."
    (tmp_path / "names").write_text("李\n", encoding="utf-8")
    with pytest.raises(DataError, match="match everywhere"):
        redaction_steps(config)


VALUES = {
    kind: [value for text in texts for name, value in found(text) if name == kind] for kind, texts in LABELLED.items()
}


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in VALUES.items() for value in values])
def test_a_surrogate_has_the_form_of_what_it_replaces(kind, value):
    other = surrogate(KEY, kind, value)
    assert other == surrogate(KEY, kind, value) != surrogate(b"another key, as long", kind, value)
    assert other != value
    plain = re.sub(r"\W", "", other)
    if kind not in ("EMAIL_ADDRESS", "IP_ADDRESS"):
        assert len(other) == len(value)
        assert re.sub(r"\w", "", other) == re.sub(r"\w", "", value)
    if kind == "CREDIT_CARD":
        assert checks.is_card(plain)
    if kind == "IBAN_CODE":
        assert checks.is_iban(plain)
    if kind == "CN_ID":
        assert checks.is_cn_id(plain)
    if kind in ("IP_ADDRESS", "US_SSN"):
        assert not checks.is_public_ip(other)
        assert found(other) == []


def test_spellings_of_one_value_share_their_surrogate():
    a, b = surrogate(KEY, "CREDIT_CARD", "4111 1111 1111 1111"), surrogate(KEY, "CREDIT_CARD", "4111-1111-1111-1111")
    assert a.replace(" ", "") == b.replace("-", "")
    assert canonical("EMAIL_ADDRESS", "A@X.org") == canonical("EMAIL_ADDRESS", "a@x.org")


def test_order_and_pickling_change_nothing(key_file):
    texts = [text for texts in LABELLED.values() for text in texts]
    (step,) = redaction_steps(PiiConfig(replacement="surrogate", key_file=key_file))
    forward = {text: step(Document("d", text), Tally()).text for text in texts}
    copy = pickle.loads(pickle.dumps(step))
    assert {text: copy(Document("d", text), Tally()).text for text in reversed(texts)} == forward


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("0123456789-. +()@:/abcXx京一\n"), max_size=80), st.text(max_size=60))
def test_any_text_is_redacted_without_error_and_twice_is_once(digits, words):
    step = RedactStep(PiiConfig(), DETECTORS)
    once = step(Document("d", f"{digits} {words}"), Tally())
    assert {name for name, _ in found(once.text)} <= {"PHONE_NUMBER", *(name for name, _ in found(f"{digits} {words}"))}
    assert masked("ab-c") == "a•-•"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kinds": ["EMAIL"]}, "EMAIL_ADDRESS"),
        ({"replacement": "vault"}, "key file"),
        ({"key_file": "k"}, "no use"),
    ],
)
def test_configurations_are_checked(values, message):
    with pytest.raises(ConfigError, match=message):
        PiiConfig.parse(values)


def test_unusable_keys_and_regions_are_named(tmp_path):
    with pytest.raises(DataError, match="cannot read the key"):
        redaction_steps(PiiConfig(replacement="surrogate", key_file=tmp_path / "none"))
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(DataError, match="5 bytes"):
        redaction_steps(PiiConfig(replacement="vault", key_file=tmp_path / "short"))
    with pytest.raises(ConfigError, match="'XX'"):
        redaction_steps(PiiConfig(regions=("XX",)))


def corpus(tmp_path, texts, **changes) -> Config:
    folder = tmp_path / "texts"
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    values = {"inputs": [str(folder)], "output": str(tmp_path / "corpus"), "preset": "none", "validation_fraction": 0.0}
    return PrepareConfig.parse(values | changes)


def prose(number):
    rng = random.Random(number)
    words = ["the", "river", "bends", "around", "old", "stone", "houses", "while", "people", "walk", "slowly", "home"]
    return " ".join(rng.choices(words, k=60)) + "."


def test_a_corpus_with_a_vault_can_be_turned_back(tmp_path, key_file):
    texts = [f"{prose(n)} Write to person{n % 3}@mail.example. {prose(n + 50)}" for n in range(6)]
    config = corpus(tmp_path, texts, pii={"replacement": "vault", "key_file": str(key_file)})
    prepare(config)
    vault = vault_path(config.output)
    assert stat.S_IMODE(vault.stat().st_mode) == 0o600
    assert "person" not in vault.read_text()
    entries = read_vault(vault)
    assert set(entries) == {label(KEY, "EMAIL_ADDRESS", f"person{n}@mail.example") for n in range(3)}
    kept = [json.loads(line)["text"] for line in (config.output / "train.jsonl").read_text().splitlines()]
    assert not any("@" in text for text in kept)
    assert sorted(Vault(KEY).reveal(text, entries) for text in kept) == sorted(texts)
    with pytest.raises(DataError, match="does not open"):
        Vault(b"another key, as long").reveal(kept[0], entries)
    first = vault.read_bytes()
    prepare(config)
    assert vault.read_bytes() == first


def test_a_vault_that_was_tampered_with_does_not_open(tmp_path):
    vault, labels = Vault(KEY), [label(KEY, "EMAIL_ADDRESS", name) for name in ("ada@x.org", "bob@x.org")]
    write_vault(
        tmp_path / "v.jsonl", dict(zip(labels, map(vault.seal, labels, ("ada@x.org", "bob@x.org")), strict=True))
    )
    sealed = read_vault(tmp_path / "v.jsonl")
    assert [vault.open(one, sealed[one]) for one in labels] == ["ada@x.org", "bob@x.org"]
    flipped = f"{int(sealed[labels[0]][-1], 16) ^ 1:x}"
    for changed in (sealed[labels[1]], sealed[labels[0]][:-1] + flipped, sealed[labels[0]][:-2], "", "no hex"):
        with pytest.raises(DataError, match="does not open"):
            vault.open(labels[0], changed)
    (tmp_path / "v.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="cannot read the vault"):
        read_vault(tmp_path / "v.jsonl")


def test_a_key_that_others_may_read_is_pointed_out(key_file, capsys):
    key_file.chmod(0o644)
    read_key(key_file)
    assert "chmod 600" in capsys.readouterr().err
    key_file.chmod(0o600)
    read_key(key_file)
    assert capsys.readouterr().err == ""


def test_reports_show_no_personal_data_even_of_dropped_documents(tmp_path):
    texts = [prose(n) for n in range(4)] + ["Short: ada@example.org", f"{prose(9)} {SECRET_TEXTS['SLACK_TOKEN']}"]
    config = corpus(tmp_path, texts, preset="prose", min_words=20, pii={"secrets": "drop"})
    manifest = prepare(config)
    everything = "".join(f.read_text() for f in config.output.iterdir())
    assert "ada@" not in everything
    assert manifest.metrics["filtered"] == 2
    report = json.loads((config.output / "report.json").read_text())
    assert {row["kind"]: row["secret"] for row in report["privacy"]} == {"EMAIL_ADDRESS": False, "SLACK_TOKEN": True}
