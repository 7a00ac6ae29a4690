"""keyfold-send: event logs in files, into Kafka."""
