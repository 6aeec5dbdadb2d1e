"""The table of tokens that issuers gave a form of their own: how they begin and what follows.

The beginnings are looked for one by one, which is faster than one expression of them all. Knows no other secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_CLASSES = {"A": "[A-Za-z0-9]", "L": "[a-z0-9]", "U": "[A-Z0-9]", "H": "[0-9a-fA-F]", "W": r"[\w-]", "B": r"[\w+/=-]"}
"""A letter and the characters it stands for, in the table below."""

_FORMS = r"""
1Password ops_eyJ B{60,1200}
Adobe p8e- L{32}
age AGE-SECRET-KEY-1 U{58}
Airtable pat A{14}\.H{64}
Alibaba LTAI A{12,30}
Anthropic sk-ant- W{20,250}
Artifactory AKCp A{69}
Artifactory cmVmd A{59}
Atlassian ATATT3 B{150,260}
Atlassian ATCTT3 B{150,260}
Bedrock ABSK B{100,280}
Bedrock bedrock-api-key- B{28,2000}
Brevo xkeysib- H{64}-A{16}
Brevo xsmtpsib- H{64}-A{16}
Buildkite bkua_ H{40}
CircleCI CCIPAT_ A{22}_H{40}
ClickHouse 4b1d A{38}
Clojars CLOJARS_ L{60}
Cloudflare v1.0- H{24}-H{146}
Contentful CFPAT- W{43}
crates.io cio A{32}
Databricks dapi H{32}(?:-\d)?
DigitalOcean doo_v1_ H{64}
DigitalOcean dop_v1_ H{64}
DigitalOcean dor_v1_ H{64}
Discord https://discord.com/api/webhooks/ \d{16,22}/W{60,90}
Discord https://discordapp.com/api/webhooks/ \d{16,22}/W{60,90}
Docker dckr_oat_ W{27,40}
Docker dckr_pat_ W{27,40}
Doppler dp. (?:pt|st|ct|sa|scim|audit)\.(?:W{2,35}\.)?A{40,44}
Duffel duffel_ (?:test|live)_W{43}
Dynatrace dt0c01. U{24}\.U{64}
EasyPost EZAK A{54}
EasyPost EZTK A{54}
Facebook EAA A{90,400}
Figma figd_ W{35,60}
Flutterwave FLWSECK W{12,60}
Fly.io fm1a_ B{100,1000}
Fly.io fm1r_ B{100,1000}
Fly.io fm2_ B{100,1000}
Fly.io fo1_ W{43}
Frame.io fio-u- W{64}
Google 1//0 W{40,200}
Grafana eyJrIjoi B{60,400}
Grafana glc_ B{32,400}
Grafana glsa_ A{32}_H{8}
Groq gsk_ A{40,60}
Harness pat. W{22}\.A{24}\.A{20}
Harness sat. W{22}\.A{24}\.A{20}
Heroku HRKU-AA W{58}
HubSpot pat-na W{1,2}-H{8}(?:-H{4}){3}-H{12}
HubSpot pat-eu W{1,2}-H{8}(?:-H{4}){3}-H{12}
HuggingFace api_org_ A{34}
HuggingFace hf_ A{34}
Infracost ico- A{32}
JD JDC_ U{28}
LangSmith lsv2_ (?:pt|sk)_H{32}_H{10}
Linear lin_api_ A{40}
Linear lin_oauth_ H{64}
Mailgun key- H{32}
Mailgun pubkey- H{32}
Mapbox sk.eyJ W{40,200}\.W{15,60}
Netlify nfp_ A{36,40}
NewRelic NRAK- A{27}
NewRelic NRII- W{32}
NewRelic NRJS- H{19}
Notion ntn_ \d{11}A{35}
Notion secret_ A{43}
npm npm_ A{36}
NuGet oy2 L{43}
NVIDIA nvapi- W{60,80}
Octopus API- U{26}
OpenAI sk- (?:proj-|or-v1-|svcacct-|admin-)?W{20,250}
OpenShift sha256~ W{43}
Perplexity pplx- A{48,56}
Pinecone pcsk_ W{50,90}
PlanetScale pscale_ (?:tkn|pw|oauth)_[\w=.-]{32,64}
Postman PMAK- H{24}-H{34}
Prefect pnu_ A{36}
Prefect pnb_ A{36}
Pulumi pul- H{40}
PyPI pypi-AgE W{50,300}
ReadMe rdme_ L{70}
Replicate r8_ A{37}
RubyGems rubygems_ H{48}
Scalingo tk-us- W{48}
SendGrid SG. W{22}\.W{43}
Sentry sntrys_ B{80,400}
Sentry sntryu_ H{64}
SettleMint sm_aat_ A{16}
SettleMint sm_pat_ A{16}
SettleMint sm_sat_ A{16}
Shippo shippo_ (?:live|test)_H{40}
Shopify shpat_ H{32}
Shopify shpca_ H{32}
Shopify shppa_ H{32}
Shopify shpss_ H{32}
SonarQube sqa_ H{40}
SonarQube sqp_ H{40}
SonarQube squ_ H{40}
Sourcegraph sgp_ (?:(?:H{16}|local)_)?H{40}
Square EAAA W{22,60}
Square sq0 (?:atp|csp|idp)-W{22,60}
Stripe pk_ (?:live|test|prod)_A{10,120}
Stripe rk_ (?:live|test|prod)_A{10,120}
Stripe sk_ (?:live|test|prod)_A{10,120}
Stripe whsec_ B{32,64}
Supabase sb_secret_ W{30,60}
Supabase sbp_ H{40}
Tailscale tskey- (?:auth|api|client|scim)-A{8,24}-A{20,60}
Teams https:// A{1,40}\.webhook\.office\.com/webhookb2/[\w@-]{40,90}/IncomingWebhook/A{20,40}/W{20,60}
Tencent AKID A{32,48}
Together tgp_v1_ W{40,60}
Twilio SK H{32}
Typeform tfp_ [\w.=-]{40,60}
Vault hvb. W{100,400}
Vault hvs. W{20,130}
Volcengine AKLT W{30,60}
xAI xai- A{60,100}
Yandex AQVN W{35,40}
"""
"""Issuer, beginning, and the rest as an expression with the letters above for classes where a count follows them."""


def _compiled(rest: str) -> re.Pattern[str]:
    spelled = re.sub(r"(?<![\\A-Za-z0-9\[])([ALUHWB])(?=\{)", lambda match: _CLASSES[match[1]], rest)
    return re.compile(rf"{spelled}(?![A-Za-z0-9_])", re.ASCII)


_IN_A_WORD = re.compile(r"[\w-]", re.ASCII)
_ROWS = [tuple(line.split()[1:]) for line in _FORMS.split("\n") if line]
FORMS: tuple[tuple[str, re.Pattern[str]], ...] = tuple((begins, _compiled(rest)) for begins, rest in _ROWS)


@dataclass(frozen=True)
class IssuedTokens:
    """Finds the tokens of the table.

    Args:
        check: of each token as it stands.
    """

    check: Callable[[str], bool]

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        """`(start, end)` of each token; where two forms fit, both are told."""
        for begins, rest in FORMS:
            start = text.find(begins)
            while start >= 0:
                match = rest.match(text, start + len(begins))
                if (
                    match is not None
                    and not _IN_A_WORD.match(text, max(start - 1, 0), start)
                    and self.check(text[start : match.end()])
                ):
                    yield start, match.end()
                start = text.find(begins, start + 1)
