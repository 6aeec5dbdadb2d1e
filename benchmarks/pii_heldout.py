"""Labelled personal data and secrets that no rule was written against, in two halves of different texts and countries.

Values come from Faker and from the forms that issuers publish, texts were composed for this: letters, signatures, logs,
code, tables, Chinese and other languages. Beside them stands what only looks alike: versions, ISBNs, hashes, dates,
coordinates, numbers that miss their check digit. Mistakes may be looked at in the half `seen`, and rules mended in
general; the half `held-out` is only counted. Knows no detector.
"""

from __future__ import annotations

import base64
import json
import random
import re
import string
from collections.abc import Callable
from typing import Any, Literal

Half = Literal["seen", "held-out"]
SECRET_FORMS = {
    "AWS_ACCESS_KEY", "AWS_SECRET_KEY", "GITHUB_TOKEN", "GITLAB_TOKEN", "SLACK_TOKEN", "STRIPE_KEY", "GOOGLE_API_KEY",
    "OPENAI_KEY", "JWT", "PRIVATE_KEY", "PASSWORD", "URL_PASSWORD",
}  # fmt: skip
LOCALES: dict[Half, tuple[str, ...]] = {
    "seen": ("en_US", "de_DE", "zh_CN", "fr_FR", "es_ES", "ja_JP", "pt_BR", "ru_RU", "pl_PL", "en_IN"),
    "held-out": ("en_GB", "it_IT", "zh_CN", "nl_NL", "ko_KR", "zh_TW", "sv_SE", "es_MX", "en_AU", "tr_TR", "en_US"),
}

# A slot {KIND} is labelled; a slot {~name} is not, and nothing may be found there.
TEMPLATES: dict[Half, tuple[str, ...]] = {
    "seen": (
        "Hi all,\nplease send the forms to {EMAIL_ADDRESS} before {~date}.\nRegards\n{~name}\nTel. {PHONE_NUMBER}\n",
        "--\n{~name} | {~company}\n{~address}\nM: {PHONE_NUMBER} E: {EMAIL_ADDRESS}\n",
        "{~log_time} sshd[{~number}]: Failed password for root from {IP_ADDRESS} port {~port} ssh2",
        '{IP_ADDRESS} - - [{~log_time}] "GET /v{~version}/index.html HTTP/1.1" 200 {~number} "-" "Mozilla/5.0"',
        "name,mail,phone,joined\n{~name},{EMAIL_ADDRESS},{PHONE_NUMBER},{~date}\n",
        '{"user": "{~name}", "email": "{EMAIL_ADDRESS}", "phone": "{PHONE_NUMBER}", "order": "{~order}"}',
        "Bitte überweisen Sie {~money} auf das Konto {IBAN_CODE} bis zum {~date}. Rückfragen: Telefon {PHONE_NUMBER}.",
        "The card {CREDIT_CARD} was declined at {~time}; order {~order} is on hold.",
        "请联系{~name_cn},手机号{CN_MOBILE},邮箱{EMAIL_ADDRESS}。",
        "申请人身份证号码为{CN_ID}，家庭住址：{~address_cn}。",
        "昨天下午一辆车牌号为{CN_PLATE}的轿车在{~address_cn}停放。",
        "Employee SSN: {US_SSN}, badge {~number}.",
        "eth0: link/ether {MAC_ADDRESS} brd ff:ff:ff:ff:ff:ff\n    inet 192.168.{~octet}.{~octet}/24\n",
        "# {~name} <{EMAIL_ADDRESS}>\nVERSION = '{~version}'\nMAX = {~number}\n",
        "Téléphone : {PHONE_NUMBER}, courriel : {EMAIL_ADDRESS}",
        "телефон {PHONE_NUMBER}, почта {EMAIL_ADDRESS}",
        "電話番号：{PHONE_NUMBER}　メール：{EMAIL_ADDRESS}",
        "export AWS_ACCESS_KEY_ID={AWS_ACCESS_KEY}\nexport AWS_SECRET_ACCESS_KEY={AWS_SECRET_KEY}\n",
        "git remote set-url origin https://{~user}:{GITHUB_TOKEN}@github.com/acme/tool.git",
        "curl -H 'PRIVATE-TOKEN: {GITLAB_TOKEN}' https://gitlab.example.com/api/v4/projects",
        "slack = WebClient(token='{SLACK_TOKEN}')",
        "stripe.api_key = \"{STRIPE_KEY}\"  # charge {~order}",
        "https://maps.googleapis.com/maps/api/js?key={GOOGLE_API_KEY}&callback=init",
        "client = OpenAI(api_key='{OPENAI_KEY}')",
        "Authorization: Bearer {JWT}\nX-Request-Id: {~uuid}\n",
        "cat > id_rsa <<END\n{PRIVATE_KEY}\nEND\n",
        "DB_HOST=db.internal\nDB_PASSWORD={PASSWORD}\nDEBUG=false\n",
        "DATABASE_URL=postgres://app:{URL_PASSWORD}@db.internal:5432/app",
    ),
    "held-out": (
        "Dear {~name},\nyour parcel {~order} waits for you. Questions? Ring {PHONE_NUMBER} or write: {EMAIL_ADDRESS}\n",
        "From: {~name} <{EMAIL_ADDRESS}>\nTo: <{EMAIL_ADDRESS}>\nDate: {~date}\nMessage-Id: {~uuid}\n\nSee you then.\n",
        "Contact\n-------\n{~address}\nphone: {PHONE_NUMBER}\nfax: {PHONE_NUMBER}\nmail: {EMAIL_ADDRESS}\n",
        "level=warn ts={~log_time} msg=\"rate limited\" client={IP_ADDRESS} port={~port} trace={~sha}",
        "Last login: {~date} {~time} from {IP_ADDRESS}\nkernel {~version}",
        "<li><a href=\"mailto:{EMAIL_ADDRESS}\">{~name}</a>, <a href=\"tel:{PHONE_NUMBER}\">{PHONE_NUMBER}</a></li>",
        "| {~name} | {PHONE_NUMBER} | {EMAIL_ADDRESS} | {~money} |",
        "Payment by transfer only. IBAN: {IBAN_CODE}. Reference {~order}.",
        "INSERT INTO payments VALUES ({~number}, '{CREDIT_CARD}', '{~date}');",
        "快递员电话{CN_MOBILE}，单号{~order}，请在{~date}前签收。",
        "持卡人姓名：{~name_cn}\n证件号码：{CN_ID}\n联系电话：{CN_MOBILE}\n",
        "违章车辆{CN_PLATE}，罚款{~number}元。",
        "Taxpayer {~name}, social security number {US_SSN}, filed on {~date}.",
        "Device {MAC_ADDRESS} joined; lease 10.{~octet}.{~octet}.{~octet}",
        "Signed-off-by: {~name} <{EMAIL_ADDRESS}>\n(cherry picked from commit {~sha})\n",
        "Teléfono: {PHONE_NUMBER}. Correo: {EMAIL_ADDRESS}",
        "전화 {PHONE_NUMBER} / 이메일 {EMAIL_ADDRESS}",
        "聯絡電話：{PHONE_NUMBER}，電子郵件：{EMAIL_ADDRESS}",
        "aws_access_key_id = {AWS_ACCESS_KEY}\naws_secret_access_key = {AWS_SECRET_KEY}\nregion = eu-west-1\n",
        "env:\n  GH_TOKEN: {GITHUB_TOKEN}\n  CI: true\n",
        "[repo]\ntoken = \"{GITLAB_TOKEN}\"\n",
        '{"bot": "{SLACK_TOKEN}", "channel": "C{~number}"}',
        "STRIPE_SECRET_KEY={STRIPE_KEY}",
        "const firebase = { apiKey: \"{GOOGLE_API_KEY}\", projectId: \"demo-{~number}\" };",
        "OPENAI_API_KEY={OPENAI_KEY}",
        'localStorage.setItem("session", "{JWT}");',
        "apiVersion: v1\nkind: Secret\nstringData:\n  tls.key: |\n{PRIVATE_KEY}\n",
        "POSTGRES_USER=app\nPOSTGRES_PASSWORD={PASSWORD}\nPOSTGRES_DB=app\n",
        "broker = amqp://worker:{URL_PASSWORD}@mq.internal:5672//",
    ),
}  # fmt: skip
NEGATIVES: dict[Half, tuple[str, ...]] = {
    "seen": (
        "Upgrade from {~version4} to {~version4} before installing driver {~version}.",
        "ISBN {~isbn13}, {~isbn13_bare}; ISBN-10 {~isbn10}",
        "Order {~order} shipped on {~date}, tracking {~number}{~number}.",
        "sha256 {~sha256}  dist/tool-{~version}.tar.gz\ncommit {~sha}",
        "request {~uuid} took {~float} ms at {~log_time}",
        "The summit lies at {~lat}, {~lon} ({~number} m).",
        "f(x) = {~float} * x + {~float}; n = {~number} - {~number} = {~number}",
        "编号{~bad_cn_id}，价格{~number}元，日期{~date}。",
        "reference {~bad_iban} and card-like {~bad_card}",
        "Founded 1998-2004, pp. 1123-1139, vol. 48 (2010), doi:10.{~octet}01/{~float}",
        "@pytest.mark.parametrize('n', [{~number}, {~number}])\ndef test_{~user}(n): ...",
        "gateway 192.168.{~octet}.1 dns 10.0.0.{~octet} mask 255.255.255.0 listen 127.0.0.1:{~port}",
        "password = os.environ['DB_PASSWORD']\ntoken = get_token(user_id)\nsecret_key = config.secret_key",
        "icon-{~number}@2x.png, assets/logo@3x.webp, systemd getty@tty1.service",
        "timestamps {~unix} {~unix} {~unix}; {~number},{~number},{~number}",
        "2024 population: {~millions}; 2023: {~millions}; change {~float}%",
        "0x{~sha} 0b1010 {~number}e-7 {~number}px {~money}",
        "std::vector<std::pair<a::b, c::d>>::iterator it; a::b::c::d::e f;",
    ),
    "held-out": (
        "Requires Chrome {~version4}; Edge {~version4} fails (issue #{~number}).",
        "See {~isbn13} (paperback) or {~isbn10} (hardcover).",
        "Invoice no. {~order}; customer {~number}; due {~date}; total {~money}",
        "{~sha256}\n{~sha}\n{~md5}\nEtag: \"{~md5}\"",
        "id={~uuid} parent={~uuid} span={~number}",
        "geo:{~lat},{~lon}?z=12; bbox {~lon},{~lat},{~lon},{~lat}",
        "{~number} + {~number} = {~number}; ({~number} - {~number}) / {~number}; 555 * 0199 / 3",
        "学号{~number}，证书编号{~bad_cn_id}，有效期{~date}至{~date}",
        "txn {~bad_iban}; serial {~bad_card}; lot {~number}-{~number}",
        "Smith et al. 2007, 12(3): 145-167; pages 2001-2010; ISO 8601; RFC 5322; ECMA-262",
        "results = np.array([{~float}, {~float}, {~float}, {~number}])",
        "route add 172.16.{~octet}.0/12 via 192.168.0.{~octet}; bind 0.0.0.0:{~port}; [::1]:{~port}; fe80::1",
        "api_key = \"YOUR_API_KEY\"\npassword: changeme\ntoken: $TOKEN\nsecret: <your-secret-here>",
        "scale(1.2.{~octet}) section 3.{~octet}.1.4 clause 4.{~octet}.2.1",
        "epoch {~unix} step {~number}/{~number} loss {~float} lr {~float} eta {~time}",
        "GDP {~millions} USD, area {~millions} km², density {~float}/km²",
        "#define MAGIC 0x{~md5}\nuint64_t seed = {~number}{~number}ULL;",
        "match {~time}–{~time}, score {~octet}:{~octet}, ratio 16:9:4:3:2",
    ),
}  # fmt: skip


def samples(half: Half, rounds: int = 40, seed: int = 2026) -> list[dict[str, Any]]:
    """Texts with labelled spans, in the layout of Presidio's samples.

    Args:
        half: which texts and countries.
        rounds: texts of each template.
        seed: of all values.
    """
    from faker import Faker

    rng = random.Random(f"{seed}/{half}")
    fakers = []
    for locale in LOCALES[half]:
        fake = Faker(locale)
        fake.seed_instance(rng.randrange(1 << 30))
        fakers.append(fake)
    english, chinese = Faker("en_US"), Faker("zh_CN")
    for fake in (english, chinese):
        fake.seed_instance(rng.randrange(1 << 30))
    made = []
    for _ in range(rounds):
        for template in (*TEMPLATES[half], *NEGATIVES[half]):
            made.append(_fill(template, _Values(rng, rng.choice(fakers), english, chinese)))
    return made


def _fill(template: str, values: _Values) -> dict[str, Any]:
    text, spans, at = "", [], 0
    for slot in re.finditer(r"\{(~?[A-Za-z]\w*)\}", template):
        name = slot[1]
        text += template[at : slot.start()]
        value = values.filler(name[1:]) if name.startswith("~") else values.labelled(name)
        if not name.startswith("~"):
            kind = "PHONE_NUMBER" if name == "CN_MOBILE" else name
            spans.append({"entity_type": kind, "start_position": len(text), "end_position": len(text) + len(value)})
        text += value
        at = slot.end()
    return {"full_text": text + template[at:], "spans": spans}


class _Values:
    """Values for the slots of one text.

    Args:
        rng: chooses.
        local: Faker of the text's country.
        english: of the United States.
        chinese: of China.
    """

    def __init__(self, rng: random.Random, local: Any, english: Any, chinese: Any) -> None:
        self._rng, self._local, self._english, self._chinese = rng, local, english, chinese

    def labelled(self, kind: str) -> str:
        """Something to be found."""
        rng = self._rng
        makers: dict[str, Callable[[], str]] = {
            "EMAIL_ADDRESS": lambda: rng.choice((self._local.email, self._local.company_email, self._english.email))(),
            "PHONE_NUMBER": lambda: str(self._local.phone_number()),
            "CN_MOBILE": lambda: str(self._chinese.phone_number()),
            "CREDIT_CARD": self._card,
            "IBAN_CODE": self._iban,
            "US_SSN": lambda: str(self._english.ssn()),
            "CN_ID": lambda: str(self._chinese.ssn()),
            "CN_PLATE": self._plate,
            "MAC_ADDRESS": lambda: str(self._english.mac_address()),
            "IP_ADDRESS": self._address,
        }
        return (makers.get(kind) or (lambda: self._secret(kind)))()

    def _address(self) -> str:
        if self._rng.random() < 0.25:
            return "2" + str(self._english.ipv6())[1:].replace("0db8", "1db8")
        return str(self._english.ipv4_public())

    def _card(self) -> str:
        """Of issuers whose numbers Faker takes from ranges that are in use."""
        issuer = self._rng.choice(("visa16", "mastercard", "amex", "discover", "diners"))
        number = str(self._english.credit_card_number(card_type=issuer))
        if len(number) == 16 and self._rng.random() < 0.5:
            return self._rng.choice(" -").join(number[at : at + 4] for at in range(0, 16, 4))
        return number

    def _plate(self) -> str:
        letters = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # neither I nor O, which Faker's plates have
        number = self._of(string.digits, 4) + self._rng.choice(letters + string.digits)
        place = self._rng.choice("京沪粤浙苏鲁川渝闽鄂") + self._rng.choice(letters)
        return place + self._rng.choice(("", "·", "-", " ")) + number

    def _iban(self) -> str:
        """Of Germany, France, Italy, Spain, the Netherlands or Austria, by the layouts of the SWIFT registry."""
        country, length = self._rng.choice((("DE", 18), ("FR", 23), ("IT", 23), ("ES", 20), ("NL", 14), ("AT", 16)))
        account = self._of(string.digits, length)
        if country == "NL":
            account = self._rng.choice(("ABNA", "INGB", "RABO")) + account[4:]
        if country == "IT":
            account = self._rng.choice("ABCXYZ") + account[1:]
        number = int("".join(str(int(c, 36)) for c in account + country + "00"))
        iban = f"{country}{98 - number % 97:02}{account}"
        return " ".join(re.findall(".{1,4}", iban)) if self._rng.random() < 0.5 else iban

    def _of(self, alphabet: str, length: int) -> str:
        return "".join(self._rng.choice(alphabet) for _ in range(length))

    def _secret(self, kind: str) -> str:
        letters, rng = string.ascii_letters + string.digits, self._rng
        makers: dict[str, Callable[[], str]] = {
            "AWS_ACCESS_KEY": lambda: "AKIA" + self._of(string.ascii_uppercase + "234567", 16),
            "AWS_SECRET_KEY": lambda: self._of(letters + "/+", 40),
            "GITHUB_TOKEN": lambda: rng.choice(
                (f"ghp_{self._of(letters, 36)}", f"gho_{self._of(letters, 36)}",
                 f"github_pat_{self._of(letters, 22)}_{self._of(letters, 59)}")
            ),
            "GITLAB_TOKEN": lambda: f"glpat-{self._of(letters + '_-', 20)}",
            "SLACK_TOKEN": lambda: "-".join(
                ("xoxb", self._of(string.digits, 12), self._of(string.digits, 13), self._of(letters, 24))
            ),
            "STRIPE_KEY": lambda: f"sk_live_{self._of(letters, rng.choice((24, 99)))}",
            "GOOGLE_API_KEY": lambda: f"AIza{self._of(letters + '_-', 35)}",
            "OPENAI_KEY": lambda: rng.choice(
                (f"sk-{self._of(letters, 48)}", f"sk-proj-{self._of(letters + '_-', 124)}",
                 f"sk-ant-api03-{self._of(letters + '_-', 95)}")
            ),
            "JWT": self._jwt,
            "PRIVATE_KEY": self._pem,
            "PASSWORD": lambda: self._password(signs=rng.random() < 0.5),
            "URL_PASSWORD": lambda: self._password(signs=False),
        }  # fmt: skip
        return makers[kind]()

    def _password(self, *, signs: bool) -> str:
        return str(self._english.password(length=self._rng.randint(10, 20), special_chars=signs))

    def _jwt(self) -> str:
        parts = ({"alg": "HS256", "typ": "JWT"}, {"sub": self._of(string.digits, 8), "iat": 1_700_000_000})
        sealed = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts]
        return ".".join((*sealed, self._of(string.ascii_letters + string.digits + "_-", 43)))

    def _pem(self) -> str:
        what = self._rng.choice(("RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"))
        lines = [self._of(string.ascii_letters + string.digits + "+/", 64) for _ in range(self._rng.randint(3, 25))]
        return "\n".join((f"-----BEGIN {what}-----", *lines, f"-----END {what}-----"))

    def filler(self, name: str) -> str:
        """Something in which nothing is to be found."""
        rng, english = self._rng, self._english
        makers: dict[str, Callable[[], str]] = {
            "name": lambda: str(self._local.name()),
            "user": lambda: str(english.user_name()),
            "company": lambda: str(self._local.company()),
            "address": lambda: str(self._local.address()),
            "name_cn": lambda: str(self._chinese.name()),
            "address_cn": lambda: str(self._chinese.street_address()),
            "date": lambda: str(english.date(rng.choice(("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d %B %Y", "%Y%m%d")))),
            "time": lambda: str(english.time()),
            "log_time": lambda: str(english.iso8601()),
            "unix": lambda: str(rng.randrange(1_500_000_000, 1_800_000_000)),
            "number": lambda: str(rng.randrange(10 ** rng.randint(2, 9))),
            "port": lambda: str(rng.randrange(1024, 65536)),
            "octet": lambda: str(rng.randrange(1, 255)),
            "version": lambda: f"{rng.randrange(20)}.{rng.randrange(40)}.{rng.randrange(300)}",
            "version4": lambda: f"{rng.randrange(1, 150)}.0.{rng.randrange(10_000)}.{rng.randrange(300)}",
            "order": lambda: rng.choice(("#{}", "ORD-{}", "A{}", "{}")).format(rng.randrange(10**9, 10**11)),
            "money": lambda: f"{rng.choice('$€£')}{rng.randrange(10**6):,}.{rng.randrange(100):02}",
            "millions": lambda: f"{rng.randrange(10**10):,}",
            "float": lambda: repr(rng.uniform(0, 1000)),
            "lat": lambda: f"{rng.uniform(-90, 90):.6f}",
            "lon": lambda: f"{rng.uniform(-180, 180):.6f}",
            "uuid": lambda: str(english.uuid4()),
            "sha": lambda: str(english.sha1()),
            "sha256": lambda: str(english.sha256()),
            "md5": lambda: str(english.md5()),
            "isbn13": lambda: str(english.isbn13()),
            "isbn13_bare": lambda: str(english.isbn13(separator="")),
            "isbn10": lambda: str(english.isbn10()),
            "bad_cn_id": lambda: _spoiled(str(self._chinese.ssn()), rng),
            "bad_iban": lambda: _spoiled(str(english.iban()), rng),
            "bad_card": lambda: _spoiled(str(english.credit_card_number("visa16")), rng),
        }
        return makers[name]()


def _spoiled(number: str, rng: random.Random) -> str:
    """One of the digits behind the fourth changed, so that the check fails."""
    at = rng.randrange(max(4, len(number) - 4), len(number) - 1)
    return number[:at] + str((int(number[at]) + rng.randint(1, 9)) % 10) + number[at + 1 :]
