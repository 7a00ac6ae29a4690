"""The two error roots, named by what becomes of the work, and the errors of the contract.

Every module of keyfold raises one of the two: a `Reject` costs one record (it goes to the
dead-letter topic and the stream moves on), a `Crash` ends the program with a non-zero exit status
and loses nothing. A message says what, where, expected, got; it never quotes a payload.
"""

from __future__ import annotations


class Reject(Exception):
    """This record cannot become an event or a prediction; the stream goes on without it."""


class Crash(Exception):
    """The program cannot go on and exits non-zero; nothing is lost, a restart resumes."""


class BundleError(Crash):
    """A bundle is missing, altered, malformed or does not compute what it promises."""


class SpecError(Crash):
    """A feature or event specification contradicts itself or names something unknown."""
