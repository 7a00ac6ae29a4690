"""Loads the service fixtures (Kafka, Valkey): see deploy/local/service_fixtures.py."""

pytest_plugins = ["local.service_fixtures"]
