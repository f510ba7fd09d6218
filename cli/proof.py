"""A proof as a page, as JSON, and as JUnit XML for continuous integration."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from scotopia.model.files import write_all
from scotopia.sim.check import Check, Verdict
from scotopia.sim.mutation import Outcome, score
from scotopia.sim.verify import Stage

from .outputs import PROOF_FILES
from .page import environment

STAGES = "stages"  #: name of the part that a verification is


@dataclass(frozen=True)
class Proof:
    """All that was checked.

    Attributes
    ----------
    title
        Of what.
    command
        That makes it again.
    stages
        Of the verification.
    checks
        Of all other parts.
    outcomes
        Of planted faults, one by one.
    """

    title: str
    command: str
    stages: list[Stage]
    checks: list[Check] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all was checked that was asked for, and nothing failed."""
        everything = self.all_checks
        return bool(everything) and all(c.verdict is Verdict.PASSED for c in everything)

    @property
    def all_checks(self) -> list[Check]:
        """Value of stages and checks in one list."""
        return [*map(stage_check, self.stages), *self.checks]


def stage_check(stage: Stage) -> Check:
    """Value of a stage as a check."""
    verdict = Verdict.PASSED if stage.passed else Verdict.FAILED
    detail = stage.detail
    if stage.evidence and not stage.expect_mismatch:
        detail += "; " + neighbourhood(stage)
    return Check(
        STAGES,
        stage.name,
        Verdict.SKIPPED if stage.skipped else verdict,
        stage.cell_updates,
        "cell updates",
        stage.seconds,
        detail,
    )


def neighbourhood(stage: Stage) -> str:
    """Value of what went into a stage's first mismatch, in one line."""
    if stage.evidence is None:
        return ""
    codes = (f"{name} {rows}" for name, rows in stage.evidence.codes.items())
    sample = stage.evidence.sample
    return f"3 x 3 codes before: {', '.join(codes)}; sample {'none' if sample is None else sample}"


def write_proof(proof: Proof, folder: Path) -> list[Path]:
    """Write proof.html, proof.json and junit.xml into a folder; return their paths."""
    texts = render_page(proof), json.dumps(as_json(proof), indent=2) + "\n", junit(proof)
    files = {folder / name: text for name, text in zip(PROOF_FILES, texts, strict=True)}
    write_all(files)
    return list(files)


def stages_json(stages: Sequence[Stage]) -> dict[str, Any]:
    """Stages of a verification for machines; the top level sums those without a fault."""
    honest = [stage for stage in stages if not stage.expect_mismatch]
    return {
        "passed": all(stage.passed for stage in stages),
        "mismatches": sum(stage.mismatches for stage in honest),
        "cell_updates": sum(stage.cell_updates for stage in honest),
        "cycles": sum(stage.cycles for stage in honest),
        "seconds": sum(stage.seconds for stage in honest),
        "stages": [_stage_json(stage) for stage in stages],
    }


def _stage_json(stage: Stage) -> dict[str, Any]:
    found = dataclasses.asdict(stage) | {"passed": stage.passed}
    found["waveform"] = str(stage.waveform) if stage.waveform else None
    return found


def as_json(proof: Proof) -> dict[str, Any]:
    """Value of a proof for machines."""
    return {
        **stages_json(proof.stages),
        "passed": proof.passed,
        "title": proof.title,
        "command": proof.command,
        "checks": [dataclasses.asdict(c) | {"verdict": c.verdict.value} for c in proof.checks],
        "faults": [
            {
                "area": outcome.fault.area.value,
                "name": outcome.fault.name,
                "fate": outcome.fate.value,
                "by": outcome.by,
                "detail": outcome.detail,
            }
            for outcome in proof.outcomes
        ],
    }


def junit(proof: Proof) -> str:
    """Value of a proof as JUnit XML: a suite each part, a case each check."""
    root = ElementTree.Element("testsuites", name=proof.title)
    for part, checks in by_part(proof.all_checks).items():
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=part,
            tests=str(len(checks)),
            failures=str(sum(c.verdict is Verdict.FAILED for c in checks)),
            skipped=str(sum(c.verdict is Verdict.SKIPPED for c in checks)),
            errors="0",
            time=f"{sum(c.seconds for c in checks):.3f}",
        )
        for check in checks:
            case = ElementTree.SubElement(
                suite, "testcase", classname=part, name=check.name, time=f"{check.seconds:.3f}"
            )
            if check.verdict is Verdict.FAILED:
                ElementTree.SubElement(case, "failure", message=check.detail or "failed")
            elif check.verdict is Verdict.SKIPPED:
                ElementTree.SubElement(case, "skipped", message=check.detail)
            else:
                found = f"{check.cases:,} {check.unit}. {check.detail}".strip()
                ElementTree.SubElement(case, "system-out").text = found
    ElementTree.indent(root)
    return ElementTree.tostring(root, "unicode", xml_declaration=True) + "\n"


def by_part(checks: Sequence[Check]) -> dict[str, list[Check]]:
    """Checks by their part, both in their order."""
    parts: dict[str, list[Check]] = {}
    for check in checks:
        parts.setdefault(check.part, []).append(check)
    return parts


def render_page(proof: Proof) -> str:
    """Value of a proof as one HTML page that refers to nothing outside itself."""
    checks = proof.all_checks
    counted = {
        verdict.value: sum(check.verdict is verdict for check in checks) for verdict in Verdict
    }
    return (
        environment()
        .get_template("proof.html")
        .render(
            proof=proof,
            parts=by_part(proof.checks),
            counted=counted,
            cell_updates=sum(s.cell_updates for s in proof.stages if not s.expect_mismatch),
            fates=Counter(outcome.fate.value for outcome in proof.outcomes),
            score=score(proof.outcomes),
        )
    )
