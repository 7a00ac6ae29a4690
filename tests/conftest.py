"""Loads the service fixtures (Kafka, Valkey): see deploy/local/service_fixtures.py.

Owns the environment that every test begins with, so that one passes alone as it does among others:
what a command sets for its own program (training/cli.py) would else be there for the next test.
"""

import os
import re

from hypothesis import settings

pytest_plugins = ["local.service_fixtures"]

# How TensorFlow reckons is settled when it is loaded, by whichever test comes first.
FIXED = {"TF_ENABLE_ONEDNN_OPTS": "0", "TF_CPP_MIN_LOG_LEVEL": "3"}
SETTING = re.compile("KEYFOLD_[A-Z_]+__")  # of a worker or a training that somebody runs here

os.environ.update(FIXED)
for name in filter(SETTING.match, list(os.environ)):
    del os.environ[name]

# No deadline: a busy machine is no bug.
settings.register_profile("keyfold", deadline=None)
settings.load_profile("keyfold")
