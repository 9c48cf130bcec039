"""A gate's report as JUnit XML, which CI systems show: one test case for each unit and check."""

from __future__ import annotations

from xml.etree import ElementTree

from align.core.evaluation.comparison import GateReport
from align.core.evaluation.gate import Judgement
from align.schemas.text import visible


def junit(report: GateReport) -> bytes:
    """Return the report as XML: what blocks is a failure; inconclusive units that do not block are skipped."""
    suite = ElementTree.Element("testsuite", name="align gate")
    for problem in report.problems:
        case = _case(suite, "comparable")
        ElementTree.SubElement(case, "failure", message=visible(problem))
    blocking = report.result.blocking if report.result is not None else ()
    for unit in report.units():
        case = _case(suite, f"{unit.role} {unit.name}")
        if unit.name in blocking:
            ElementTree.SubElement(case, "failure", message=describe(unit))
        elif unit.verdict == "inconclusive":
            ElementTree.SubElement(case, "skipped", message=describe(unit))
    for check in report.checks:
        case = _case(suite, check.name)
        if check.name in blocking:
            least = "" if check.least is None else f"from {check.least:.4g} "
            value = f"{check.value:.4g}, accepted {least}to {check.most:.4g}"
            ElementTree.SubElement(case, "failure", message=value)
    cases = suite.findall("testcase")
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(case.find("failure") is not None for case in cases)))
    suite.set("skipped", str(sum(case.find("skipped") is not None for case in cases)))
    return bytes(ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))


def _case(suite: ElementTree.Element, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname="align.gate", name=visible(name))


def describe(unit: Judgement) -> str:
    """Return a judgement in one line: verdict, difference with its interval, margin, and the rows that it needs."""
    c = unit.comparison
    words = "no clear change" if unit.margin is None and unit.verdict == "inconclusive" else unit.verdict
    line = f"{words}: {c.difference:+.4f} (from {c.low:+.4f} to {c.high:+.4f}, {c.rows} items)"
    if unit.margin is not None:
        line += f", margin {unit.margin:g}"
    if unit.verdict == "inconclusive" and unit.support is not None and not unit.support.supported:
        line += (
            f"; this margin needs {unit.support.rows_needed:,} items, these support {unit.support.smallest_margin:.3f}"
        )
    return line
