"""A file is looked at, checked and reported on before its first step, and what is wrong with it is said everywhere."""

import csv
import gzip
import json
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from pyarrow import parquet
from transformers import AutoTokenizer

from tests.acceptance.bench import COMMANDS, Bench, as_bytes, chat, lines, rows

BAD = b'{"messages": []}\n'
LONG = [chat(f"Tell {n}.", "word " * 300) for n in range(40)]  # more than 512 tokens


def put(bench: Bench, name: str, content: Any) -> Path:
    path = bench.root.parent / name
    path.write_bytes(as_bytes(content))
    return path


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def show(bench: Bench, job: str) -> dict[str, Any]:
    return json.loads(bench.command("training_queue", "show", job, "--json").stdout)


# ---- before it is dropped ----


def test_validate_says_what_is_wrong_where_and_how_to_mend_it(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    damaged = as_bytes(rows(97)) + BAD + b'{"question": "q"}\n' + b"no json\n"
    path = put(bench, "new.jsonl", damaged)
    said = bench.command("training_queue", "validate", str(path))
    assert said.returncode == 1
    assert "97 good, 3 bad" in said.stdout
    for reason, line, fix in (
        ("1 × the row has no turns", 98, "add a question and its answer"),
        ("1 × no known format has these columns: question", 99, "use one of: messages"),
        ("1 × not valid JSON at character 1", 100, "each line has to be one JSON object"),
    ):
        place = said.stdout.index(reason)
        assert said.stdout.index(f"where: line {line}\n", place) < said.stdout.index(f"mend:  {fix}", place)
    facts = json.loads(bench.command("training_queue", "validate", str(path), "--json").stdout)
    assert [trouble["lines"] for trouble in facts["troubles"]] == [[98], [99], [100]]
    assert facts["report"]["estimated_memory_bytes"] > facts["report"]["checkpoint_bytes"] > 0
    assert path.read_bytes() == damaged
    assert [f.name for f in bench.root.glob("queue/*/*")] + [
        f.name for f in bench.root.glob("data/validation/.*")
    ] == []


@pytest.mark.parametrize(("content", "code"), [(rows(20), 0), (BAD * 3, 7), (b"", 7), (rows(5) + LONG[:1], 1)])
def test_validate_ends_with_a_code_for_good_imperfect_and_unusable(
    make_bench: Callable[..., Bench], content: Any, code: int
) -> None:
    bench = make_bench()
    assert bench.command("training_queue", "validate", str(put(bench, "new.jsonl", content))).returncode == code


def test_the_first_twenty_lines_of_each_kind_are_listed(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    path = put(bench, "new.jsonl", BAD * 30 + b"no json\n")
    said = bench.command("training_queue", "validate", str(path)).stdout
    assert f"where: lines {', '.join(map(str, range(1, 21)))} and 10 more" in said
    assert "where: line 31\n" in said


def test_the_length_that_fits_is_proposed_and_set_where_it_is_wished(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    path = put(bench, "new.jsonl", rows(7) + LONG[:3])
    facts = json.loads(bench.command("training_queue", "validate", str(path), "--auto-adjust", "--json").stdout)
    fits = facts["max_length_proposed"]
    assert fits == facts["report"]["longest_row"]
    assert json.loads((bench.root / "config.json").read_text())["max_length"] == 512
    said = bench.command("training_queue", "validate", str(path), "--auto-adjust", "--yes")
    assert (said.returncode, json.loads((bench.root / "config.json").read_text())["max_length"]) == (0, fits)
    assert f"set to {fits} in config.json" in said.stdout
    assert bench.command("training_queue", "validate", str(path), "--yes").returncode == 2


def test_a_length_that_the_model_cannot_have_is_not_proposed(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    path = put(bench, "new.jsonl", [chat("q", "word " * 9000)])
    said = bench.command("training_queue", "validate", str(path), "--auto-adjust", "--yes")
    assert said.returncode == 5
    assert "positions" in said.stderr


def test_preview_shows_the_first_rows_as_the_model_sees_them(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    path = put(bench, "new.jsonl", [chat("Who?", "Me \x1b[31m."), *rows(5)])
    said = bench.command("training_queue", "preview", str(path), "--rows", "2").stdout
    assert "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n" in said
    assert said.count("⟦") == said.count("⟧") == 2
    assert r"Me \x1b[31m.<|im_end|>" in said, "what steers a terminal is spelled out"
    (first,) = json.loads(bench.command("training_queue", "preview", str(path), "--rows", "1", "--json").stdout)
    trained = "".join(piece["text"] for piece in first["pieces"] if piece["trained"])
    assert (first["line"], "Me" in trained, "Who" in trained) == (1, True, False)


def test_preview_shows_the_text_of_transformers_and_marks_what_is_trained(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    talks = [
        [user("a?"), {**assistant("no."), "train": False}, user("b?"), assistant("<yes> \n")],
        [{"role": "system", "content": "s"}, user("c?"), assistant("d"), user("e?"), assistant("f")],
    ]
    path = put(bench, "new.jsonl", [{"messages": talk} for talk in talks])
    found = json.loads(bench.command("training_queue", "preview", str(path), "--json").stdout)
    tokenizer = AutoTokenizer.from_pretrained(bench.root / "models/base/tiny")
    for row, talk in zip(found, talks, strict=True):
        asked = [{key: turn[key] for key in ("role", "content")} for turn in talk]
        assert "".join(piece["text"] for piece in row["pieces"]) == tokenizer.apply_chat_template(asked, tokenize=False)
    assert [[p["text"] for p in row["pieces"] if p["trained"]] for row in found] == [
        ["<yes> \n<|im_end|>"],
        ["d<|im_end|>", "f<|im_end|>"],
    ]


def test_preview_colours_what_is_trained_on_a_terminal(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    path = put(bench, "new.jsonl", rows(1))
    ours, theirs = pty.openpty()
    environment = {**bench.environment, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    command = [str(COMMANDS / "training_queue"), "preview", str(path), "--base-dir", str(bench.root)]
    subprocess.run(command, stdout=theirs, env=environment, check=True, cwd="/")
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert "\x1b[30;42m" in shown
    assert "⟦" not in shown


def test_rows_taken_for_the_holdout_are_chosen_once_and_for_all_and_never_trained(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    path = put(bench, "all.jsonl", rows(20) + rows(3))
    too_many = bench.command("training_queue", "holdout", str(path), "--rows", "11")
    assert (too_many.returncode, "at most 10" in too_many.stderr) == (2, True)
    assert "5 of 23 good rows" in bench.command("training_queue", "holdout", str(path), "--rows", "5").stdout
    kept = bench.root / "data/validation/all.jsonl"
    chosen = kept.read_bytes().splitlines()
    assert len(chosen) == 5
    assert set(chosen) <= set(path.read_bytes().splitlines())
    assert bench.command("training_queue", "holdout", str(path), "--rows", "5").returncode == 5
    kept.unlink()
    bench.command("training_queue", "holdout", str(path), "--rows", "5")
    assert kept.read_bytes().splitlines() == chosen
    bench.start()
    bench.drop("all.jsonl", path.read_bytes())
    (job,) = bench.wait_for("completed")
    report = show(bench, job)["report"]
    assert report["holdout_rows"] == sum(path.read_bytes().splitlines().count(row) for row in chosen)
    assert report["rows"] + report["holdout_rows"] == 23


# ---- after it is dropped ----


def assert_said(bench: Bench, job: str, good: int, bad: int, too_long: int) -> None:
    """What the commands say of a job in the queue, for people and for programs."""
    long_too = f", {too_long} too long" if too_long else ""
    shown = bench.command("training_queue", "show", job).stdout
    assert f"{good} good, {bad} refused{long_too}\n" in shown
    facts = show(bench, job)
    refused = facts["rejected_rows"]
    assert len(refused) == bad + too_long
    assert all(f"line {row['line']}: {row['reason']} ({row['fix']})" in shown for row in refused)
    header, *listed = bench.command("training_queue", "list", "--all").stdout.splitlines()
    (line,) = [line for line in listed if job in line]
    ends = [header.index(name) + len(name) for name in ("rows", "bad", "long")]
    assert [int(line[:end].split()[-1]) for end in ends] == [good, bad, too_long]
    (row,) = [
        row for row in json.loads(bench.command("training_queue", "list", "--all", "--json").stdout) if row["id"] == job
    ]
    for told in (row, facts["report"], json.loads((bench.root / facts["folder"] / "report.json").read_text())):
        assert (told["rows"], told["bad_rows"], told["too_long_rows"]) == (good, bad, too_long)


def assert_recorded(bench: Bench, job: str, good: int, bad: int, too_long: int) -> None:
    """What stays of a completed job: its event, its line in the ledger, its results."""
    (event,) = [event for event in bench.events("completed") if event["job"] == job]
    parts = ", ".join(f"{count} {what}" for count, what in ((bad, "bad"), (too_long, "too long")) if count)
    assert f"completed with {good} rows ({parts}; see rejected.jsonl)" in event["message"]
    (ended,) = [line for line in lines(bench.root / "runs/ledger.jsonl") if line["job"] == job]
    assert (ended["rows"], ended["bad_rows"], ended["too_long_rows"]) == (good, bad, too_long)
    results = yaml.safe_load((bench.root / "runs" / job / "results.yaml").read_text())
    assert results["rows"] == {"trained": good, "bad": bad, "too_long": too_long, "in_holdout": 0}


def test_a_file_at_four_percent_is_trained_without_its_bad_rows_and_says_so_everywhere(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench(num_train_epochs=30)
    path = put(bench, "x.jsonl", as_bytes(rows(96)) + BAD * 4)
    said = bench.command("training_queue", "validate", str(path))
    assert (said.returncode, "96 good, 4 bad" in said.stdout) == (1, True)
    bench.start()
    bench.command("training_controller", "pause").check_returncode()
    bench.command("training_queue", "add", str(path)).check_returncode()
    (job,) = bench.wait_for("normal")
    bench.wait(lambda: bench.events("checked"), 60, "the file is checked")
    assert "(4 bad; see rejected.jsonl)" in bench.events("checked")[0]["message"]
    assert_said(bench, job, 96, bad=4, too_long=0)
    bench.command("training_controller", "resume").check_returncode()
    seen = bench.wait(lambda: bench.status().get("job"), 60, "the status shows the job")
    assert (seen["rows"], seen["bad_rows"], seen["too_long_rows"]) == (96, 4, 0)
    assert "96 good, 4 refused" in bench.command("training_controller", "status").stdout
    bench.wait_for("completed", seconds=240)
    assert [row["line"] for row in lines(bench.root / "queue/completed" / job / "rejected.jsonl")] == [97, 98, 99, 100]
    assert_said(bench, job, 96, bad=4, too_long=0)
    assert_recorded(bench, job, 96, bad=4, too_long=0)
    assert (bench.root / "queue/completed" / job / "digests.bin").stat().st_size == 96 * 16
    known = json.loads(
        bench.command("training_queue", "validate", str(put(bench, "y.jsonl", rows(100))), "--json").stdout
    )
    assert known["report"]["trained_before_rows"] == 96
    assert known["report"]["estimated_seconds"] > 0


def test_a_file_at_six_percent_is_refused_and_the_limit_is_a_setting(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.start()
    bench.drop("x.jsonl", as_bytes(rows(94)) + BAD * 6)
    (job,) = bench.wait_for("failed")
    facts = show(bench, job)
    assert "6 of 100 (6 %) rows are bad, 5 % may be; the first is line 95: the row has no turns" in facts["reason"]
    assert "rejected.jsonl" in facts["remedy"]
    bench.configure(max_bad_row_percent=6)
    bench.command("training_queue", "retry", job).check_returncode()
    assert bench.wait_for("completed") == [job]


def test_ten_percent_of_too_long_rows_are_left_out_and_listed_and_thirty_park_the_file(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    bench.start()
    bench.drop("some.jsonl", rows(18) + LONG[:2])
    (some,) = bench.wait_for("completed")
    listed = lines(bench.root / "queue/completed" / some / "rejected.jsonl")
    assert [row["line"] for row in listed] == [19, 20]
    assert all("max_length is 512" in row["reason"] for row in listed)
    assert show(bench, some)["report"]["warnings"] == [
        "2 of 20 (10 %) rows are longer than max_length 512 and left out"
    ]
    assert_said(bench, some, 18, bad=0, too_long=2)
    assert_recorded(bench, some, 18, bad=0, too_long=2)
    assert (
        "2 too long"
        in bench.command("training_queue", "add", str(put(bench, "alike.jsonl", rows(18, 70) + LONG[:2]))).stdout
    )
    bench.drop("many.jsonl", rows(14, start=150) + LONG[:6])
    (many,) = bench.wait_for("failed")
    facts = show(bench, many)
    fits = facts["report"]["longest_row"]
    assert "6 of 20 (30 %) rows are longer than max_length 512" in facts["reason"]
    assert f"set max_length to {fits} " in facts["remedy"]
    bench.configure(max_length=fits)
    bench.command("training_queue", "retry", many).check_returncode()
    bench.wait_for("completed", 3)


def test_every_kind_of_file_is_trained(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.start()
    pairs = [{"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(60)]
    with (bench.root / "inbox/.a.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["question", "answer"])
        writer.writerows(list(pair.values()) for pair in pairs[:10])
    (bench.root / "inbox/a.yaml").write_text("column_map: {prompt: question, completion: answer}\nlabel: a table\n")
    (bench.root / "inbox/.a.csv").rename(bench.root / "inbox/a.csv")
    bench.drop("b.json", json.dumps(pairs[10:20]))
    bench.drop("c.jsonl.gz", gzip.compress(as_bytes(pairs[20:30])))
    bench.drop("d.txt", "One text.\n\nAnother text.\n")
    parquet.write_table(pyarrow.Table.from_pylist(pairs[30:40]), bench.root / "inbox/.e.parquet")
    (bench.root / "inbox/.e.parquet").rename(bench.root / "inbox/e.parquet")
    bench.wait_for("completed", 5)
    assert {line["file"]: line["rows"] for line in lines(bench.root / "runs/ledger.jsonl")} == {
        **dict.fromkeys(("a.csv", "b.json", "c.jsonl.gz", "e.parquet"), 10),
        "d.txt": 2,
    }


def test_preferences_are_recognised_and_parked(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.start()
    bench.drop("x.jsonl", [{"prompt": "q", "chosen": "a", "rejected": f"b{n}"} for n in range(5)])
    (job,) = bench.wait_for("failed")
    assert "preferences (chosen and rejected), which cannot be trained yet" in show(bench, job)["reason"]
    assert (
        bench.command("training_queue", "validate", str(bench.root / "queue/failed" / job / "x.jsonl")).returncode == 7
    )


# ---- files that wait for others ----


def test_a_file_waits_for_the_one_it_is_to_be_trained_after_and_lets_others_pass(
    make_bench: Callable[..., Bench],
) -> None:
    bench = make_bench()
    bench.start()
    bench.command("training_controller", "pause").check_returncode()
    bench.drop("first.jsonl", rows(8))
    first = bench.wait_for("normal")[0]
    added = bench.command(
        *("training_queue", "add", str(put(bench, "second.jsonl", rows(8, start=50)))),
        *("--after", "first.jsonl", "--priority", "high"),
    )
    assert added.returncode == 0, added.stderr
    listed = json.loads(bench.command("training_queue", "list", "--json").stdout)
    assert [row["file"] for row in listed] == ["second.jsonl", "first.jsonl"]
    bench.command("training_controller", "resume").check_returncode()
    bench.wait_for("completed", 2)
    assert [line["file"] for line in lines(bench.root / "runs/ledger.jsonl")] == ["first.jsonl", "second.jsonl"]
    assert f"second.jsonl waits for {first} to be completed" in [e["message"] for e in bench.events("waits")]


def test_a_file_that_waits_for_one_that_failed_is_refused_aloud(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    bench.drop("first.jsonl", "no row\n")
    (bench.root / "inbox/second.yaml").write_text("after: first.jsonl\n")
    bench.drop("second.jsonl", rows(8))
    bench.start()
    bench.wait_for("failed", 2)
    reasons = {facts["file"]: facts["reason"] for facts in (show(bench, job) for job in bench.jobs("failed"))}
    assert reasons["second.jsonl"].endswith("after which this file was to be trained, is failed")
    missing = bench.command("training_queue", "add", str(put(bench, "x.jsonl", rows(1))), "--after", "nobody")
    assert missing.returncode == 4


def test_a_file_is_not_trained_before_its_time(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    (bench.root / "inbox/later.yaml").write_text("not_before: 2999-01-01T00:00:00Z\npriority: high\n")
    bench.drop("later.jsonl", rows(8))
    bench.drop("now.jsonl", rows(8, start=50))
    bench.start()
    bench.wait_for("completed")
    (waiting,) = json.loads(bench.command("training_queue", "list", "--json").stdout)
    assert (waiting["file"], waiting["waits_for"]) == ("later.jsonl", "until 2999-01-01T00:00:00.000Z")
