"""Studies: one question each about a checkpoint, answered by measurements, with tables, charts and a page.

To add one, write a file here and its test; nothing else changes. The file has

    STUDY = Study(name="precision", summary=..., words=..., points=..., measure=..., show=...)

points(session) lists what is to be measured, each a dict of JSON values; measure(session, point) returns the numbers of
one, again as JSON values; show(rows, session) makes charts, tables and pictures of the rows (points with their
numbers). The framework does the rest: the command and its options, progress, a file that is written after each point,
going on after a kill, CSV, PNG and HTML. `session.shared` is what `prepare` made when the first point was measured,
such as the true images. A UserError in `measure` becomes the reason why a point has no numbers. What several studies
share stands in files that begin with an underscore.
"""

from edm_fast.studies._registry import registry
from edm_fast.studies._run import run_study
from edm_fast.studies._study import Chart, Grid, Option, Pictures, Session, Study

__all__ = ["Chart", "Grid", "Option", "Pictures", "Session", "Study", "registry", "run_study"]
