"""What holds for all tests.

Networks are planned anew, unless a test is about plans that are kept: tests change what plans are made by. Kernels are chosen by the costs
that are assumed of the CPU, so that results are the same in every run. Hypothesis draws the same examples in every run.
"""

import os

from hypothesis import settings

os.environ["FINEPRUNE_PLANS"] = "anew"
os.environ["FINEPRUNE_COSTS"] = "assumed"
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")
