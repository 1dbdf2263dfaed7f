"""Settings as a command line makes them."""

from __future__ import annotations

from pleiades.config.settings import Settings
from pleiades.sinks.files.destination import FilesDestination
from pleiades.sinks.kafka.destination import KafkaDestination
from pleiades.sinks.registry import relay_parser, relay_settings


def settings_of(*flags: str, command: str = "ingest") -> Settings:
    return relay_settings(vars(relay_parser(command).parse_args(flags)))


def files_of(settings: Settings) -> FilesDestination:
    assert isinstance(settings.destination, FilesDestination)
    return settings.destination


def kafka_of(settings: Settings) -> KafkaDestination:
    assert isinstance(settings.destination, KafkaDestination)
    return settings.destination
