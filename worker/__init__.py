"""The stream worker: Kafka in, ONNX Runtime, state in Redis, predictions out."""
