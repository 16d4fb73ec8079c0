"""Pages to look at: what a compression gained and what it cost, and bundles side by side. One HTML file each, everything inside.

Data flow one way: `sources.py` reads and checks what there is, one module a section turns that into markup, `page.py` puts the sections
together. `markup.py` escapes and lays out, `page.css` and `page.js` are what the page carries of style and script.
"""

from .comparison import compare, write_comparison
from .page import write_report

__all__ = ["compare", "write_comparison", "write_report"]
