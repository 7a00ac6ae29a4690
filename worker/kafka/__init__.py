"""What is asked of Kafka beside the stream: topics, rights, offsets, bounded reading."""
