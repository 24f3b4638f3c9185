#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run the converter from a checkout; the installed command calls the same main()."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bonsai_convert.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
