#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run the converter from a checkout; the installed command calls the same main()."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

try:
    from bonsai_convert.cli import main
except ModuleNotFoundError as e:
    sys.exit(f"convert.py: error: the Python package '{e.name}' is needed: pip install {e.name}")

if __name__ == "__main__":
    sys.exit(main())
