"""The token cache gives back what was put in, and every damage to it is noticed."""

from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon.core import files
from daemon.core.config import Settings
from daemon.data import tokens
from daemon.data.tokens import TokensMeta, TokensWriter
from tests.helpers_data import make_model_folder

ROWS = [([5, 6, 7], b"\0\1\1", 1, b"a" * 16), ([8], b"\1", 4, b"b" * 16), ([2**31 - 1, 0], b"\0\1", 5, b"c" * 16)]


def make_cache(folder: Path) -> TokensMeta:
    with files.stage(folder) as staged, TokensWriter(staged) as writer:
        for ids, mask, line, digest in ROWS:
            writer.append(tokens.packed(ids), mask, line, digest)
        return writer.finish("data", "key", 2)


def read_numbers(path: Path, kind: str) -> list[int]:
    return array(kind, path.read_bytes()).tolist()


def test_the_cache_holds_all_rows_one_after_the_other(tmp_path: Path) -> None:
    meta = make_cache(tmp_path / "tokens")
    assert (meta.rows, meta.tokens, meta.trained_tokens, meta.longest_row, meta.left_out_rows) == (3, 6, 4, 3, 2)
    assert read_numbers(tmp_path / "tokens/ids.bin", "i") == [5, 6, 7, 8, 2**31 - 1, 0]
    assert (tmp_path / "tokens/mask.bin").read_bytes() == b"\0\1\1\1\0\1"
    assert read_numbers(tmp_path / "tokens/rows.bin", "Q") == [0, 3, 4, 6]
    assert read_numbers(tmp_path / "tokens/lines.bin", "Q") == [1, 4, 5]
    assert tokens.read_digests(tmp_path / "tokens") == {b"a" * 16, b"b" * 16, b"c" * 16}


def test_a_whole_cache_passes_the_check_and_says_what_it_is(tmp_path: Path) -> None:
    meta = make_cache(tmp_path / "tokens")
    assert tokens.check(tmp_path / "tokens", "key", "data", deep=True) is None
    assert tokens.read_meta(tmp_path / "tokens") == meta


def test_without_its_last_file_there_is_no_cache(tmp_path: Path) -> None:
    make_cache(tmp_path / "tokens")
    (tmp_path / "tokens/tokens.json").unlink()
    assert tokens.read_meta(tmp_path / "tokens") is None
    assert "no whole token cache" in (tokens.check(tmp_path / "tokens", "key", "data") or "")


def test_another_key_and_other_data_are_told_apart(tmp_path: Path) -> None:
    make_cache(tmp_path / "tokens")
    assert "settings" in (tokens.check(tmp_path / "tokens", "other", "data") or "")
    assert "data has changed" in (tokens.check(tmp_path / "tokens", "key", "other") or "")


@pytest.mark.parametrize("name", ["ids.bin", "mask.bin", "rows.bin", "lines.bin", "digests.bin", "tokens.json"])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b"", lambda b: None])
def test_a_file_of_another_size_or_none_is_noticed(
    tmp_path: Path, name: str, damage: Callable[[bytes], bytes | None]
) -> None:
    make_cache(tmp_path / "tokens")
    path = tmp_path / "tokens" / name
    data = damage(path.read_bytes().strip(b"\n") if name == "tokens.json" else path.read_bytes())
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    assert tokens.check(tmp_path / "tokens", "key", "data") is not None


@pytest.mark.parametrize("name", ["ids.bin", "mask.bin", "rows.bin", "lines.bin", "digests.bin"])
def test_a_changed_byte_is_noticed_by_the_deep_check(tmp_path: Path, name: str) -> None:
    make_cache(tmp_path / "tokens")
    path = tmp_path / "tokens" / name
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert tokens.check(tmp_path / "tokens", "key", "data") is None
    assert "the content of" in (tokens.check(tmp_path / "tokens", "key", "data", deep=True) or "")


def test_a_record_that_does_not_agree_with_itself_is_noticed(tmp_path: Path) -> None:
    meta = make_cache(tmp_path / "tokens")
    meta.model_copy(update={"rows": 2}).save(tmp_path / "tokens/tokens.json")
    assert "does not agree" in (tokens.check(tmp_path / "tokens", "key", "data") or "")


def test_the_key_changes_with_all_that_decides_the_tokens(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path)
    settings = Settings(model_name="m", base_model="b")
    keys = [tokens.key(folder, settings), tokens.key(folder, settings.model_copy(update={"learning_rate": 1.0}))]
    assert keys[0] == keys[1]
    for change in ({"max_length": 8}, {"excess_length": "truncate"}, {"max_row_bytes": 100}):
        keys.append(tokens.key(folder, settings.model_copy(update=change)))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text((folder / name).read_text() + " ")
        keys.append(tokens.key(folder, settings))
    assert len(set(keys)) == 7
