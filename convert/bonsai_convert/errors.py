# SPDX-License-Identifier: Apache-2.0
"""Errors that end a conversion with a sentence instead of a traceback."""


class ConvertError(Exception):
    """Something about the source, the target or the machine stops the conversion.

    The message says what, where, expected, found, and what to do. Exit code 1.
    """


class UsageError(ConvertError):
    """The command line itself makes no sense. Exit code 2."""
