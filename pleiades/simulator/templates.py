"""Bodies of `recentchange` events, with gaps for what differs from one event to the next.

Law: pure and seeded. The shapes follow the official schema
(https://schema.wikimedia.org/repositories/primary/jsonschema/mediawiki/recentchange/1.0.1), the
frequencies those of a few hundred real events; the words are made up.

A template is a pair of byte patterns, the event before and after the digits of `meta.offset`. The
operator `%` fills their gaps from a mapping: this takes a microsecond, serialising an event ten.
"""

from __future__ import annotations

import random
from typing import Any, TypeAlias
from urllib.parse import quote

import orjson

SCHEMA = "/mediawiki/recentchange/1.0.0"

_WIKIS = (
    ("www.wikidata.org", "wikidatawiki", 27),
    ("commons.wikimedia.org", "commonswiki", 21),
    ("en.wikipedia.org", "enwiki", 19),
    ("ru.wikipedia.org", "ruwiki", 9),
    ("mg.wiktionary.org", "mgwiktionary", 4),
    ("fr.wiktionary.org", "frwiktionary", 3),
    ("ja.wikipedia.org", "jawiki", 3),
    ("de.wikipedia.org", "dewiki", 3),
    ("ckb.wikipedia.org", "ckbwiki", 2),
    ("zh.wikipedia.org", "zhwiki", 2),
    ("hi.wikipedia.org", "hiwiki", 1),
)
_TYPES = (("edit", 63), ("categorize", 31), ("new", 4), ("log", 2))

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

_REDACTED_RATE = 0.004
_NULL_ID_RATE = 0.004
_ABSENT_ID_RATE = 0.004
_AWKWARD_RATE = 0.05
_NO_TITLE_URL_RATE = 0.01
_MEAN_COMMENT_WORDS = 15

# Marks that no text contains; replaced by gaps after serialising.
_GAP = "\x01{}\x02"
_GAPS = ("request_id", "identity", "dt", "topic", "partition", "rcid", "seconds", "old", "new")
_NUMBERS = ("partition", "rcid", "seconds", "old", "new")


Template: TypeAlias = tuple[bytes, bytes]


def make_templates(rng: random.Random, stream: str, count: int) -> list[Template]:
    """Bodies for a stream, e.g. `mediawiki.recentchange`."""
    return [_template(_body(rng, stream)) for _ in range(count)]


def canary_templates(stream: str) -> tuple[Template, Template]:
    """A canary with a body, and one like those seen live, of `$schema` and `meta` only."""
    meta = _meta("canary", None, stream)
    example = {
        "$schema": SCHEMA,
        "meta": meta,
        "id": _gap("rcid"),
        "type": "edit",
        "namespace": 0,
        "title": "examplearticle",
        "comment": "canary",
        "timestamp": _gap("seconds"),
        "user": "exampleuser",
        "bot": True,
        "server_url": "https://canary.example.org",
        "server_name": "canary.example.org",
        "server_script_path": "/w",
        "wiki": "examplewiki",
        "parsedcomment": "canary",
    }
    return _template(example), _template({"$schema": SCHEMA, "meta": meta})


def _gap(name: str) -> str:
    return _GAP.format(name)


def _meta(domain: str, uri: str | None, stream: str) -> dict[str, Any]:
    place = {} if uri is None else {"uri": uri}
    return {
        **place,
        "request_id": _gap("request_id"),
        "id": _gap("identity"),
        "dt": _gap("dt"),
        "domain": domain,
        "stream": stream,
        "topic": _gap("topic"),
        "partition": _gap("partition"),
        "offset": _gap("offset"),
    }


def _template(body: dict[str, Any]) -> Template:
    text = orjson.dumps(body).replace(b"%", b"%%")
    for name in _GAPS:
        mark = orjson.dumps(_gap(name))
        gap = b"%%(%b)" % name.encode()
        if name in _NUMBERS:
            text = text.replace(mark, gap + b"d")
        text = text.replace(mark[1:-1], gap + (b"d" if name in _NUMBERS else b"b"))
    head, _, tail = text.partition(orjson.dumps(_gap("offset")))
    return head, tail


def _choose(rng: random.Random, weighted: tuple[tuple[Any, ...], ...]) -> Any:
    return rng.choices(weighted, [row[-1] for row in weighted])[0]


def _words(rng: random.Random, language: str, count: int) -> str:
    words = _WORDS.get(language, _WORDS["en"]).split()
    return " ".join(rng.choice(words) for _ in range(count))


def _body(rng: random.Random, stream: str) -> dict[str, Any]:
    server, wiki, _ = _choose(rng, _WIKIS)
    kind = _choose(rng, _TYPES)[0]
    language = server.partition(".")[0]
    url = f"https://{server}"
    namespace = 14 if kind == "categorize" else rng.choice((0, 0, 0, 0, 1, 2, 4, 6, 10))
    title = _words(rng, language, rng.randint(1, 5)).capitalize()
    if kind == "categorize":
        title = "Category:" + title
    elif server == "www.wikidata.org":
        title = f"Q{rng.randrange(1, 130_000_000)}"
    uri = f"{url}/wiki/{quote(title.replace(' ', '_'), safe=':()')}"
    comment, parsed = _comments(rng, language)
    body: dict[str, Any] = {"$schema": SCHEMA, "meta": _meta(server, uri, stream)}
    chance = rng.random()
    if chance < _NULL_ID_RATE:
        body["id"] = None
    elif chance > _ABSENT_ID_RATE + _NULL_ID_RATE:
        body["id"] = _gap("rcid")
    body |= {"type": kind, "namespace": namespace, "title": title}
    if rng.random() > _NO_TITLE_URL_RATE:
        body["title_url"] = uri
    body |= {"comment": comment, "timestamp": _gap("seconds")}
    if rng.random() > _REDACTED_RATE:
        body["user"] = _words(rng, language, 2).title()
    body["bot"] = rng.random() < 0.4  # noqa: PLR2004  # as recorded
    if kind == "log":
        body |= _log_fields(rng, comment)
    else:
        body["notify_url"] = f"{url}/w/index.php?diff={_gap('new')}&oldid={_gap('old')}"
    if kind in ("edit", "new"):
        body |= _revision_fields(rng, kind)
    return body | {
        "server_url": url,
        "server_name": server,
        "server_script_path": "/w",
        "wiki": wiki,
        "parsedcomment": parsed,
    }


def _comments(rng: random.Random, language: str) -> tuple[str, str]:
    count = min(int(rng.expovariate(1 / _MEAN_COMMENT_WORDS)), 90)
    comment = _words(rng, language, count)
    if rng.random() < _AWKWARD_RATE:
        comment += rng.choice(_AWKWARD) + _words(rng, language, 1)
    if not comment:
        return "", ""
    link = _words(rng, language, 2)
    target = quote(link.replace(" ", "_"))
    parsed = f'{comment} <a href="/wiki/{target}" title="{link}">{link}</a>'
    return f"{comment} [[{link}]]", parsed


def _revision_fields(rng: random.Random, kind: str) -> dict[str, Any]:
    length = rng.randrange(20, 90_000)
    fields: dict[str, Any] = {"minor": rng.random() < 0.3, "patrolled": rng.random() < 0.6}  # noqa: PLR2004
    if kind == "new":
        return fields | {"length": {"new": length}, "revision": {"new": _gap("new")}}
    return fields | {
        "length": {"old": length, "new": max(length + rng.randrange(-300, 400), 0)},
        "revision": {"old": _gap("old"), "new": _gap("new")},
    }


def _log_fields(rng: random.Random, comment: str) -> dict[str, Any]:
    log_type, action = rng.choice((("upload", "upload"), ("abusefilter", "hit"), ("move", "move")))
    return {
        "log_id": rng.choice((None, _gap("rcid"))),
        "log_type": log_type,
        "log_action": action,
        "log_params": rng.choice(([], {"action": "edit", "filter": "1"}, "1")),
        "log_action_comment": comment or None,
    }
