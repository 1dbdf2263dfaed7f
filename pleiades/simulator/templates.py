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

SCHEMA = "/mediawiki/recentchange/1.0.0"

# With their shares in percent.
_SERVERS = {
    "www.wikidata.org": 27,
    "commons.wikimedia.org": 21,
    "en.wikipedia.org": 22,
    "ru.wikipedia.org": 9,
    "fr.wikipedia.org": 7,
    "ja.wikipedia.org": 4,
    "de.wikipedia.org": 5,
    "ckb.wikipedia.org": 2,
    "zh.wikipedia.org": 2,
    "hi.wikipedia.org": 1,
}
_TYPES = {"edit": 63, "categorize": 31, "new": 4, "log": 2}
_WORDS = {
    "en": "river bridge station mountain history village music theatre church island painter "
    "school railway novel battle football engine garden tower science castle harbour library",
    "de": "Fluß Brücke Bahnhof Gebirge Geschichte Dörfer Musik Theater Kirche Insel Maler",
    "fr": "rivière pont gare montagne histoire village théâtre église île école château",
    "ru": "река мост станция гора история деревня музыка театр церковь художник",  # noqa: RUF001
    "ja": "川 橋 駅 山 歴史 村 音楽 劇場 教会 島 画家 学校",
    "zh": "河流 桥梁 车站 山脉 历史 村庄 音乐 剧院 教堂 岛屿 画家 学校",
    "ckb": "ڕووبار پرد وێستگە چیا مێژوو گوند مۆسیقا شانۆ",
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
    meta = _meta("canary", stream)
    return [
        _template(_body(rng, stream) | {"meta": meta}),
        _template({"$schema": SCHEMA, "meta": meta}),
    ]


def _template(body: dict[str, Any]) -> Template:
    """Gaps are written `⟦name⟧`, those for numbers `⟦#name⟧`."""
    text = orjson.dumps(body).decode().replace("%", "%%")
    text = re.sub(r'("?)⟦#(\w+)⟧\1', r"%(\2)d", text)
    text = re.sub(r"⟦(\w+)⟧", r"%(\1)b", text)
    head, _, tail = text.encode().partition(b"%(offset)d")
    return head, tail


def _meta(domain: str, stream: str) -> dict[str, str]:
    return {
        "request_id": "⟦request_id⟧",
        "id": "⟦identity⟧",
        "dt": "⟦dt⟧",
        "domain": domain,
        "stream": stream,
        "topic": "⟦topic⟧",
        "partition": "⟦#partition⟧",
        "offset": "⟦#offset⟧",
    }


def _choose(rng: random.Random, shares: dict[str, int]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def _body(rng: random.Random, stream: str) -> dict[str, Any]:
    server, kind = _choose(rng, _SERVERS), _choose(rng, _TYPES)
    language = server.partition(".")[0]
    vocabulary = _WORDS.get(language, _WORDS["en"]).split()

    def words(count: int) -> str:
        return " ".join(rng.choices(vocabulary, k=count))

    title = words(rng.randint(1, 5)).capitalize()
    if kind == "categorize":
        title = f"Category:{title}"
    elif language == "www":
        title = f"Q{rng.randrange(1, 130_000_000)}"
    uri = f"https://{server}/wiki/{quote(title.replace(' ', '_'), safe=':()')}"
    comment = words(min(int(rng.expovariate(1 / _MEAN_COMMENT_WORDS)), 90))
    if rng.random() < _AWKWARD_RATE:
        comment += rng.choice(_AWKWARD) + words(1)
    link = words(2)
    parsed = f'<a href="/wiki/{quote(link.replace(" ", "_"))}" title="{link}">{link}</a>'
    body: dict[str, Any] = {
        "$schema": SCHEMA,
        "meta": {"uri": uri, **_meta(server, stream)},
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
        **_fields_of(rng, kind, comment),
        "server_url": f"https://{server}",
        "server_name": server,
        "server_script_path": "/w",
        "wiki": "wikidatawiki" if language == "www" else f"{language}wiki",
        "parsedcomment": comment and f"{comment} {parsed}",
    }
    for name in ("id", "title_url", "user"):
        if rng.random() < _RARELY:
            del body[name]
    return body


def _fields_of(rng: random.Random, kind: str, comment: str) -> dict[str, Any]:
    """The fields that only one type of event has."""
    if kind == "categorize":
        return {}
    if kind == "log":
        names = rng.choice((("upload", "upload"), ("abusefilter", "hit"), ("move", "move")))
        return {
            "log_id": rng.choice((None, "⟦#rcid⟧")),
            "log_type": names[0],
            "log_action": names[1],
            "log_params": rng.choice(([], {"action": "edit", "filter": "1"}, "1")),
            "log_action_comment": comment or None,
        }
    length = rng.randrange(20, 90_000)
    fields = {
        "minor": rng.choices((True, False), (3, 7))[0],
        "patrolled": rng.choices((True, False), (6, 4))[0],
        "length": {"new": length},
        "revision": {"new": "⟦#new⟧"},
    }
    if kind == "edit":
        fields["length"] = {"old": max(length + rng.randrange(-400, 300), 0), "new": length}
        fields["revision"] = {"old": "⟦#old⟧", "new": "⟦#new⟧"}
    return fields
