"""Numbers and words that look like personal data are left; numbers as people of many countries write them are found.

Secrets stand in the forms that their issuers publish and in the places where settings keep them. Tokens are put
together here, so that no file holds one.
"""

import base64
import random
import string

import pytest

from lmworks.data.privacy.detectors import search
from lmworks.data.privacy.redact import PiiConfig, detectors_of

DETECTORS = detectors_of(PiiConfig())
HEX, ANY, LOWER = "0123456789abcdef", string.ascii_letters + string.digits, string.ascii_lowercase + string.digits


def found(text):
    return [(finding.kind, text[finding.start : finding.end]) for finding in search(text, DETECTORS)]


LOOKALIKES = """
Version 10.15.7.1 of macOS|1.2.3.4 Introduction|Chapter 12.34.56.78|Chrome/119.0.6045.105|1.234.567,89 €|1 234 567 890
ISBN 978-3-16-148410-0|978-0-13-468599-1|ISSN 2049-3630|doi:10.1000/182.2021.1234567|pp. 123-456-789|SKU 123-456-789
Part no. 555-1234-01|Order #: 4500012345|ticket 415-555|20231104123456|1699101296123|2023-11-04T12:34:56.789Z
zip 94105-1234|40.712776, -74.005974|3.14159265358979|contact pads 0.125 0.250|rgb(123, 456, 789)|10:20:30:40:50:60
bbox = [123 456 789 1011]|4111 1111 1111 1112|IBAN DE89 3704 0044 0532 0130 01|110105194912310021|110105194913310028
987-65-4321|SSN 000-12-3456|commit da39a3ee5e6b4b0d3255bfef95601890afd80709|192.168.1.1|2001:db8::1
a::b::c::d::e::f|git@github.com:org/repo.git
<Buffer 08 07 06 05>|foo@2x.png|@babel/core@7.23.2|Text size 1234567 bytes
"mobile": false, "width": 1234567|the cell (3, 4) holds 1234567
ring buffer of 16777216 entries|The phone has 1080 x 2400 pixels|订单号 20231104123456789012|第1.2.3.4节|版本号 1.2.3.4
"""


@pytest.mark.parametrize("text", [text for line in LOOKALIKES.split("\n") for text in line.split("|") if text])
def test_what_only_looks_alike_is_left(text):
    assert found(text) == []


PHONES = """
Tel.: +49 (0)30 123456-78|Telefon 089/12345678|01 42 68 53 00|Phone: 07700 900123|teléfono (011) 4321-8765
(21) 2345-6789|电话：010-62785001|138 0013 8000|400-820-8820 客服电话|手機 0912-345-678|香港電話 +852 2345 6789
電話番号 03-1234-5678|전화 02-1234-5678|тел. 8 (495) 123-45-67|tlf: 12 34 56 78|puh. 040 123 4567
Telefon: 0212 123 45 67|mobile: 9876543210
call me at 2125550187|+61 412 345 678|Tel: 6123 4567|☎ 030 1234567|Điện thoại: 024 3825 1234|โทร 02 123 4567
הטלפון 03-1234567
"""


@pytest.mark.parametrize("text", [text for line in PHONES.split("\n") for text in line.split("|") if text])
def test_telephone_numbers_of_many_countries_are_found(text):
    assert [kind for kind, _ in found(text)] == ["PHONE_NUMBER"]


@pytest.mark.parametrize(
    "address", ["J.Müller@firma.de", "o'brien@irish.ie", "info@müller.de", "info@例え.jp", "иван@почта.рф"]
)
def test_an_address_is_found_whole(address):
    assert found(f"write to {address}.") == [("EMAIL_ADDRESS", address)]


TOKENS = """
dapi H32|dop_v1_ H64|glsa_ A32 _ H8|lin_api_ A40|NRAK- A27|nfp_ A40|ntn_ D11 A35|PMAK- H24 - H34|pul- H40|rubygems_ H48
shpat_ H32|sq0atp- A22|hvs. A95|tskey-auth- A12 - A32|sntryu_ H64|dckr_pat_ A27|figd_ A40|gsk_ A52|r8_ A37|pplx- A48
LTAI A20|AKID A32|key- H32|xkeysib- H64 - A16|glft- A20|glagent- A50|GR1348941 A20|xapp-1-A0123-456- H40|SK H32|hf_ A34
AGE-SECRET-KEY-1 U58|EZAK A54|CLOJARS_ L60|dp.pt. A43|PuTTY|SSH2|cut
"""


def made(form, seed):
    rng = random.Random(seed)
    sets = {"H": HEX, "A": ANY, "D": string.digits, "U": string.ascii_uppercase + string.digits, "L": LOWER}
    body = "\n".join("".join(rng.choices(ANY + "+/", k=64)) for _ in range(6))
    if form == "PuTTY":
        return f"PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none\nPrivate-Lines: 6\n{body}\nPrivate-MAC: 12ab"
    if form == "SSH2":
        return f"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\n{body}\n---- END SSH2 ENCRYPTED PRIVATE KEY ----"
    if form == "cut":
        return f"-----BEGIN EC {'PRIVATE'} KEY-----\n{body}"
    first, *rest = form.split()
    drawn = ("".join(rng.choices(sets[p[0]], k=int(p[1:]))) if p[1:] else p for p in rest)
    return first + "".join(drawn)


@pytest.mark.parametrize("form", [form for line in TOKENS.split("\n") for form in line.split("|") if form])
def test_the_forms_of_issuers_are_found_in_any_place(form):
    for seed in range(5):
        token = made(form, f"{form} {seed}")
        for text in (f"then use {token} for it", f"密钥{token}。", f'x("{token}")'):
            hits = search(text, DETECTORS)
            assert hits, text
            assert sum(hit.end - hit.start for hit in hits) > 0.8 * len(token), text


@pytest.mark.parametrize("alphabet", [HEX, ANY, LOWER, ANY + "+/"])
@pytest.mark.parametrize(
    "place",
    [
        "DATADOG_API_KEY={}", "ENCRYPTION_KEY={}", '"app_secret": "{}",', "  client_secret: {}",
        "密码：{}", "<password>{}</password>",
        '<add key="ApiKey" value="{}" />', "tool --token {}", "curl -H 'X-Api-Key: {}'", "Authorization: token {}",
        "//registry.npmjs.org/:_authToken={}", "machine x.io login me password {}", "Authorization: Bearer {}",
        "Server=x;Uid=me;Pwd={};", "DefaultEndpointsProtocol=https;AccountName=a;AccountKey={}==;EndpointSuffix=x",
    ],
)  # fmt: skip
def test_random_values_are_found_where_settings_keep_them(place, alphabet):
    value = "".join(random.Random(place).choices(alphabet, k=40))
    assert value in "".join(text for _, text in found(place.format(value)))


def test_what_base64_hides_is_found():
    key = base64.b64encode(f"-----BEGIN RSA {'PRIVATE'} KEY-----\n{'MIIEow' * 20}".encode()).decode()
    assert found(f"  tls.key: {key}\n")[0] == ("PRIVATE_KEY", key)
    pair = base64.b64encode(b"ada:l0velace").decode()
    assert found(f"Authorization: Basic {pair}") == [("HTTP_CREDENTIALS", pair)]


@pytest.mark.parametrize(
    "text",
    [
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "sk-estimator-id-12-container-div-abc",
        "integrity sha512-z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==",
        "uuid: 123e4567-e89b-12d3-a456-426614174000", "max_token_length: 1024", "eos_token = '<|endoftext|>'",
        "private_key_path = '/etc/ssl/key1.pem'", "access_key: ${{ secrets.AWS_KEY2 }}", "token=$TOKEN2",
        "TOKEN: \"{{ .Values.token2 }}\"", "postgres://u:<password>@h/", "https://user:${PASSWORD}@host/",
        'ALLOW_CREDENTIALS = "Access-Control-Allow-Credentials"', "KEY = rust_openssl.hpke.MLKEM768X25519PrivateKey",
        "the text between '-----BEGIN RSA PRIVATE KEY-----' and '-----END RSA PRIVATE KEY-----' is read",
    ],
)  # fmt: skip
def test_hashes_names_and_templates_are_no_secrets(text):
    assert found(text) == []
