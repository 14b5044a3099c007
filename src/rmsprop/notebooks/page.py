"""The tutorial as one page of HTML that needs neither a server nor a network.

marimo's own export loads its program from a network when it is opened. This page has no program: what sliders stand at
takes their place.
"""

import json
import re
from html import unescape
from typing import Any

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>RMSprop from the beginning</title>
<style>
body {{ max-width: 46rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.55 system-ui, sans-serif; color: #222 }}
img {{ max-width: 100%; height: auto }}
pre {{ background: #f5f5f3; padding: .7rem; overflow-x: auto; font-size: .85rem; line-height: 1.4 }}
code {{ font-family: ui-monospace, monospace }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ border-bottom: 1px solid #ddd; padding: .25rem .9rem .25rem 0; text-align: left }}
.paragraph {{ display: block; margin: .7rem 0 }}
.setting {{ background: #eef3fa; border-radius: .3rem; padding: .1rem .5rem }}
</style>
</head>
<body>
<p><em>A still copy. <code>rmsprop learn</code> shows the same page with sliders that can be moved.</em></p>
{body}
</body>
</html>
"""


def page() -> str:
    """Runs the notebook, and returns what it shows as HTML."""
    import marimo

    from rmsprop.notebooks.learn import app

    outputs, names = app.run()
    body = "\n".join(marimo.as_html(output).text for output in outputs if output is not None)
    for value in names.values():
        if isinstance(value, marimo.Html) and hasattr(value, "value"):
            body = body.replace(value.text, _still(value))
    return _PAGE.format(body=body)


def _still(element: Any) -> str:
    """The label of a slider, menu or box, and its value."""
    found = re.search(r"data-label='(.*?)'", element.text)
    label = re.sub(r"<.*?>", "", json.loads(unescape(found[1]))) if found else ""
    value = ", ".join(element.value) if isinstance(element.value, list) else element.value
    return f'<span class="setting">{label}: <b>{value}</b></span>'
