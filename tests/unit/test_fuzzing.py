"""A short run of every target of the fuzzer, with the same cases each time; tests/soak/fuzz.py runs for an hour."""

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzzing import TARGETS, target
from tests.fuzzing.case import Case, Finding, run_case, signature

EXAMPLES = {"rows": 40, "answers": 60, "pages": 60, "sets": 40, "run_files": 60, "environments": 15}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_people_bring_ends_in_a_traceback(name):
    module = target(name)

    @settings(
        max_examples=EXAMPLES[name] * settings.default.max_examples // 50, suppress_health_check=list(HealthCheck)
    )
    @given(module.cases())
    def check(case):
        run_case(case, module.check, limited=False)  # how fast the machine is proves nothing

    check()


def test_a_case_is_the_same_after_it_was_written():
    case = Case("rows", {"flags": []}, {"a.jsonl": b'{"a": 1}\n', "b/c.arrow": b"\xff\r\n"})
    assert Case.from_json(case.to_json()) == case


def test_a_planted_fault_is_found(monkeypatch):
    """The targets' own properties hold anything back that a command lets through."""
    from data_prep.reading import formats

    module = target("rows")
    case = Case("rows", {"command": "compose", "inputs": ["in.jsonl"], "flags": []}, {"in.jsonl": b'["q", "i", 0.5]\n'})
    run_case(case, module.check, limited=False)
    as_it_is = formats.to_record

    def changed(*arguments):
        record, extra = as_it_is(*arguments)
        record.positives = [f"{record.positives[0]}!"]
        return record, extra

    monkeypatch.setattr(formats, "to_record", changed)
    with pytest.raises(Finding) as found:
        run_case(case, module.check, limited=False)
    assert signature(found.value) == "a row of an output is read as another one"
