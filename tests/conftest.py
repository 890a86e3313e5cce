"""Lets the tests import the program's modules, under the settings that the program itself chooses."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import runtime  # noqa: E402

runtime.start()
