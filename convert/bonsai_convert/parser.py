# SPDX-License-Identifier: Apache-2.0
"""argparse with errors of one line that guess what was meant."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            close = difflib.get_close_matches(unknown[1], options, 1)
            message += f"; did you mean {close[0]}?" if close else ""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists all options)\n")
