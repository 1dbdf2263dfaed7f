"""The destination that is a Kafka topic: events and position in one transaction."""
