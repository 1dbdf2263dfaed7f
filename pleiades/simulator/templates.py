"""Bodies of `recentchange` events, with gaps for what differs from one event to the next.

Law: pure and seeded. The shapes follow the official schema
(https://schema.wikimedia.org/repositories/primary/jsonschema/mediawiki/recentchange/1.0.1), the
frequencies those of a few hundred real events; the words are made up.

A template is a pair of byte patterns, the event before and after the digits of `meta.offset`. The
operator `%` fills their gaps from a mapping: this takes a microsecond, serialising an event ten.
"""

from __future__ import annotations

import random
import re
from typing import Any, TypeAlias
from urllib.parse import quote

import orjson

# With their shares in percent.
_LANGUAGES = {"www": 27, "commons": 21, "en": 22, "ru": 9, "fr": 12, "ja": 4, "zh": 4, "hi": 1}
_KINDS = {"edit": 63, "categorize": 31, "new": 4, "log": 2}
_SITES = {"www": "www.wikidata.org", "commons": "commons.wikimedia.org"}
_WORDS = {
    "en": "river bridge station mountain history village music theatre church island painter "
    "school railway novel battle football engine garden tower science castle harbour library",
    "fr": "rivière pont gare montagne histoire village théâtre église île école château",
    "ru": "река мост станция гора история деревня музыка театр церковь художник",  # noqa: RUF001
    "ja": "川 橋 駅 山 歴史 村 音楽 劇場 教会 島 画家 学校",
    "zh": "河流 桥梁 车站 山脉 历史 村庄 音乐 剧院 教堂 岛屿 画家 学校",
    "hi": "नदी पुल स्टेशन पर्वत इतिहास गाँव संगीत रंगमंच",
}
# Raw in real events, and line ends to `str.splitlines` though not to SSE.
_AWKWARD = ("\u2028", "\u2029", "\u0085", "\u200e", "\U0001f30d", "\\", '"', "\u00a0", "\u000b")
_AWKWARD_RATE = 0.05
_RARELY = 0.004
_MEAN_COMMENT_WORDS = 15

Template: TypeAlias = tuple[bytes, bytes]


def make_templates(rng: random.Random, stream: str, count: int) -> list[Template]:
    """Bodies for a stream, e.g. `mediawiki.recentchange`."""
    return [_template(_body(rng, stream)) for _ in range(count)]


def canary_templates(rng: random.Random, stream: str) -> list[Template]:
    """A canary with a body, and one like those seen live, of `$schema` and `meta` only."""
    body = _body(rng, stream)
    body["meta"]["domain"] = "canary"
    return [_template(body), _template({name: body[name] for name in ("$schema", "meta")})]


def _template(body: dict[str, Any]) -> Template:
    """Gaps are written `⟦name⟧`, those for numbers `⟦#name⟧`."""
    text = orjson.dumps(body).decode().replace("%", "%%")
    text = re.sub(r'("?)⟦#(\w+)⟧\1', r"%(\2)d", text)
    text = re.sub(r"⟦(\w+)⟧", r"%(\1)b", text)
    head, _, tail = text.encode().partition(b"%(offset)d")
    return head, tail


def _body(rng: random.Random, stream: str) -> dict[str, Any]:
    (language,) = rng.choices(list(_LANGUAGES), list(_LANGUAGES.values()))
    (kind,) = rng.choices(list(_KINDS), list(_KINDS.values()))
    vocabulary = _WORDS.get(language, _WORDS["en"]).split()

    def words(count: int) -> str:
        return " ".join(rng.choices(vocabulary, k=count))

    title = words(rng.randint(1, 5)).capitalize()
    if kind == "categorize":
        title = f"Category:{title}"
    elif language == "www":
        title = f"Q{rng.randrange(1, 130_000_000)}"
    server = _SITES.get(language, f"{language}.wikipedia.org")
    uri = f"https://{server}/wiki/{quote(title.replace(' ', '_'), safe=':()')}"
    comment = words(min(int(rng.expovariate(1 / _MEAN_COMMENT_WORDS)), 90))
    if rng.random() < _AWKWARD_RATE:
        comment += rng.choice(_AWKWARD) + words(1)
    link = words(2)
    parsed = f'<a href="/wiki/{quote(link.replace(" ", "_"))}" title="{link}">{link}</a>'
    body: dict[str, Any] = {
        "$schema": "/mediawiki/recentchange/1.0.0",
        "meta": {
            "uri": uri,
            "request_id": "⟦request_id⟧",
            "id": "⟦identity⟧",
            "dt": "⟦dt⟧",
            "domain": server,
            "stream": stream,
            "topic": "⟦topic⟧",
            "partition": "⟦#partition⟧",
            "offset": "⟦#offset⟧",
        },
        "id": None if rng.random() < _RARELY else "⟦#rcid⟧",
        "type": kind,
        "namespace": 14 if kind == "categorize" else rng.choice((0, 0, 0, 0, 1, 2, 4, 6, 10)),
        "title": title,
        "title_url": uri,
        "comment": comment and f"{comment} [[{link}]]",
        "timestamp": "⟦#seconds⟧",
        "user": words(2).title(),
        "bot": rng.choices((True, False), (2, 3))[0],
        "notify_url": f"https://{server}/w/index.php?diff=⟦#new⟧&oldid=⟦#old⟧",
        "server_url": f"https://{server}",
        "server_name": server,
        "server_script_path": "/w",
        "wiki": "wikidatawiki" if language == "www" else f"{language}wiki",
        "parsedcomment": comment and f"{comment} {parsed}",
    }
    if kind == "log":
        body |= {
            "log_id": rng.choice((None, "⟦#rcid⟧")),
            "log_type": "abusefilter",
            "log_action": "hit",
            "log_params": rng.choice(([], {"action": "edit", "filter": "1"}, "1")),
            "log_action_comment": comment or None,
        }
    elif kind in ("edit", "new"):
        length = rng.randrange(400, 90_000)
        body["minor"], body["patrolled"] = rng.choices((True, False), (2, 3), k=2)
        body["length"] = {"old": length + rng.randrange(-400, 300), "new": length}
        body["revision"] = {"old": "⟦#old⟧", "new": "⟦#new⟧"}
        if kind == "new":
            del body["length"]["old"], body["revision"]["old"]
    for name in ("id", "title_url", "user"):
        if rng.random() < _RARELY:
            del body[name]
    return body
