"""logs.jsonl: one reader, line by line, whatever the logged texts hold; the files made from it are those of before."""

import json

from data_prep.common.files import write_json
from trainer.run_dir.log import LOG, RunLog, read_events, write_json_array

TEXT = "one\u2028two\u2029three\x85four\x1cfive\nsix\rseven"  # all but \n and \r are written as they are


def test_a_logged_text_may_hold_any_separator(tmp_path):
    log = RunLog(tmp_path, active=True)
    log.event("step", step=1, epoch=1, loss=1.5, source=TEXT)
    log.event("warning", epoch=1, step=1, text=TEXT)
    log.event("epoch", epoch=1, step=1, train_loss=1.5)
    log.write_epoch_files()
    log.close()
    problems = []
    kinds = [event["event"] for event in read_events(tmp_path / LOG, problems=problems)]
    assert kinds == ["step", "warning", "epoch"] and not problems
    steps = json.loads((tmp_path / "detailed_training_logs.json").read_text(encoding="utf-8"))
    assert [step["source"] for step in steps] == [TEXT]
    again = RunLog(tmp_path, active=True, keep_bytes=(tmp_path / LOG).stat().st_size)  # a resumed run
    assert [event["text"] for event in again.events("warning")] == [TEXT]
    assert [event["source"] for event in again.events("step")] == [TEXT]
    again.close()


def test_an_epoch_is_read_from_its_first_step_on(tmp_path):
    log = RunLog(tmp_path, active=True)
    for epoch in (1, 2):
        for step in (1, 2):
            log.event("step", step=2 * epoch - 2 + step, epoch=epoch)
        assert [event["step"] for event in log.steps(log.epoch_start)] == [2 * epoch - 1, 2 * epoch]
        log.event("epoch", epoch=epoch)
    log.close()
    again = RunLog(tmp_path, active=True, keep_bytes=(tmp_path / LOG).stat().st_size)
    assert [event["epoch"] for event in again.steps(again.epoch_start)] == [1, 1, 2, 2]  # it does not know the offset
    assert len(again.events("epoch")) == 2
    again.close()


def test_half_a_line_is_skipped_and_named(tmp_path):
    (tmp_path / LOG).write_bytes(b'{"event": "step", "step": 1}\n{"event": "st\n\n{"event": "end"}')
    problems = []
    assert [event["event"] for event in read_events(tmp_path / LOG, problems=problems)] == ["step", "end"]
    assert problems == [f"line {number} of logs.jsonl is no whole event" for number in (2, 3)]
    assert list(read_events(tmp_path / "no.jsonl", problems=problems)) == []
    assert problems[2] == "no.jsonl cannot be read (No such file or directory)"


def test_an_array_written_piece_by_piece_has_the_bytes_of_a_whole_one(tmp_path):
    values = [{"a": [1, {"b": TEXT}], "c": {}, "d": []}, 1.5, "x\ny", None, [[]]]
    for some in (values, values[:1], []):
        write_json(tmp_path / "whole.json", some)
        write_json_array(tmp_path / "pieces.json", iter(some))
        assert (tmp_path / "whole.json").read_bytes() == (tmp_path / "pieces.json").read_bytes()


def test_a_line_about_a_step_ends_with_the_time_left(tmp_path, monkeypatch, capsys):
    seconds = iter([100.0, 104.0, 116.0])
    monkeypatch.setattr("trainer.run_dir.log.time.monotonic", lambda: next(seconds))
    log = RunLog(tmp_path, active=True)
    for step in (1, 3, 9):  # 2 seconds a step
        log.progress(step, 9, "loss 1", every=3)
    log.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 1/9  loss 1",
        "step 3/9  loss 1  12 s left",
        "step 9/9  loss 1",
    ]
