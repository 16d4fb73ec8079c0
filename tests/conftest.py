"""Tests plan networks anew, unless they are about plans that are kept: they change what plans are made by."""

import os

os.environ["FINEPRUNE_PLANS"] = "anew"
