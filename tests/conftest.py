"""Loads the service fixtures (Kafka, Valkey): see deploy/local/service_fixtures.py."""

from hypothesis import settings

pytest_plugins = ["local.service_fixtures"]

# No deadline: a busy machine is no bug.
settings.register_profile("keyfold", deadline=None)
settings.load_profile("keyfold")
