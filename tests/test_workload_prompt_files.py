"""Records of prompt files: every kind gives the same ones, a bad file is refused in one line with its place."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wattflow.errors import RefusedError
from wattflow.workload import prompt_files

PROMPTS = ["one", 'two, "quoted"', "three\nlines; here", "vier äöü \u2028", "5" * 200_000]


def refusal(path, split=None):
    """The message of the RefusedError, checked to be one line that names the path."""
    with pytest.raises(RefusedError) as caught:
        prompt_files.records_at(path, split)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    assert str(path) in message
    return message


def as_json(folder, prompts):
    path = folder / "p.json"
    path.write_text(json.dumps([{"prompt": p} for p in prompts]))
    return path


def as_lines(folder, prompts):
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    return path


def as_csv(folder, prompts, delimiter=",", name="p.csv"):
    path = folder / name
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["id", "prompt"])
        rows.writerows(enumerate(prompts))
    return path


def as_semicolons(folder, prompts):
    return as_csv(folder, prompts, ";")


def as_tabs(folder, prompts):
    return as_csv(folder, prompts, "\t", "p.tsv")


def as_parquet(folder, prompts, name="p.parquet"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": range(len(prompts)), "prompt": prompts}), path, row_group_size=2)
    return path


def as_saved(folder, prompts):
    """What `save_to_disk` writes."""
    data = folder / "data-00000-of-00001.arrow"
    table = pa.table({"prompt": prompts})
    with pa.OSFile(str(data), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": data.name}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def as_downloaded(folder, prompts):
    """A folder as the hub has it, in two parts."""
    as_parquet(folder, prompts[:2], "data/train-00000-of-00002.parquet")
    as_parquet(folder, prompts[2:], "data/train-00001-of-00002.parquet")
    (folder / "README.md").write_text("about")
    return folder


KINDS = [as_json, as_lines, as_csv, as_semicolons, as_tabs, as_parquet, as_saved, as_downloaded]


@pytest.mark.parametrize("write", KINDS)
def test_every_kind_of_file_has_the_same_records(tmp_path, write):
    """Quotes, line breaks, U+2028 and long prompts survive."""
    found = prompt_files.records_at(write(tmp_path, PROMPTS))
    assert [record["prompt"] for _, record in found] == PROMPTS


def test_text_has_a_prompt_a_line(tmp_path):
    """Blank lines are skipped and places are lines of the file, Windows' line ends too."""
    path = tmp_path / "p.txt"
    path.write_bytes(b"[one\r\n\r\n  two \n")
    assert prompt_files.records_at(path) == [
        ("line 1", {"text": "[one"}),
        ("line 3", {"text": "  two "}),
    ]


def test_the_library_datasets_reads_back_what_we_read(tmp_path):
    """Its own `save_to_disk`, where it is installed."""
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"prompt": PROMPTS}).save_to_disk(tmp_path / "saved")
    found = prompt_files.records_at(tmp_path / "saved")
    assert [record["prompt"] for _, record in found] == PROMPTS


def test_a_folder_of_several_splits_needs_one(tmp_path):
    """By the name of its folder, or of its files."""
    as_parquet(tmp_path / "hub", ["a"], "data/train-0.parquet")
    as_parquet(tmp_path / "hub", ["b", "c"], "data/test-0.parquet")
    assert "it has test, train. Set dataset.split" in refusal(tmp_path / "hub")
    assert "no split dev; it has test, train" in refusal(tmp_path / "hub", "dev")
    assert len(prompt_files.records_at(tmp_path / "hub", "test")) == 2
    for split in ("train", "test"):
        (tmp_path / "saved" / split).mkdir(parents=True)
        as_saved(tmp_path / "saved" / split, [split])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert "it has test, train" in refusal(tmp_path / "saved")
    assert prompt_files.records_at(tmp_path / "saved", "test") == [("row 1", {"prompt": "test"})]


def _parquet_without_columns(folder):
    pq.write_table(pa.table({"title": ["a"]}), folder / "p.parquet")
    return folder / "p.parquet"


def _parquet_cut_short(folder):
    path = as_parquet(folder, PROMPTS)
    path.write_bytes(path.read_bytes()[:-9])
    return path


def _parquet_damaged(folder):
    path = as_parquet(folder, ["a" * 1000])
    data = bytearray(path.read_bytes())
    at = data.index(b"aaa") - 40
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)
    return path


def _arrow_cut_short(folder):
    as_saved(folder, PROMPTS)
    path = folder / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:100])
    return path


def _state_that_leads_out(folder):
    (folder / "state.json").write_text('{"_data_files": [{"filename": "../secret.arrow"}]}')
    return folder


def _text(name, data):
    def write(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_parquet_without_columns, "has the columns title, and none of prompt, text"),
        (_parquet_cut_short, "not a Parquet file"),
        (_parquet_damaged, "not a Parquet file"),
        (_arrow_cut_short, "not an Arrow stream"),
        (_text("p.csv", b"prompt,id\na\n"), "line 2: 1 fields, where the first line names 2"),
        (_text("p.csv", b'prompt\n"a\n'), "not CSV (unexpected end of data)"),
        (_text("p.csv", b"prompt,prompt\na,b\n"), "line 1: two columns have one name"),
        (_text("p.csv", b"prompt\n\xe9\n"), "line 2: byte 0xe9 is not UTF-8"),
        (_text("p.csv", b"prompt\n"), "has no records"),
        (_text("p.txt", b" \n"), "the file is empty"),
        (_text("p.jsonl", b"\x1f\x8b\x08\x00rest"), "packed by gzip. Unpack it first."),
        (_text("p.zip", b"PK\x03\x04rest"), "packed by zip"),
        (_text("p.json", b'{"a": [\n'), "line 1: not JSON"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, write, message):
    """With the place where there is one."""
    assert message in refusal(write(tmp_path))


def test_a_bad_folder_is_refused_in_one_line(tmp_path):
    """No data files, files of another folder, no JSON, a split of a file."""
    assert "nor a folder of datasets" in refusal(tmp_path)
    assert "no data files of this folder" in refusal(_state_that_leads_out(tmp_path))
    (tmp_path / "state.json").write_text("{")
    assert "not JSON" in refusal(tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "gone.arrow"}]}')
    assert "cannot be read (No such file" in refusal(tmp_path)
    (tmp_path / "p.txt").write_text("a")
    assert "a file, and dataset.split=test" in refusal(tmp_path / "p.txt", "test")


def test_a_file_with_too_many_records_is_refused(tmp_path, monkeypatch):
    """Before it fills the login node's memory."""
    monkeypatch.setattr(prompt_files, "_MOST_RECORDS", 3)
    assert "5 records" in refusal(as_parquet(tmp_path, PROMPTS))
    assert "a prompt file has at most 3" in refusal(as_saved(tmp_path, PROMPTS))


def test_a_short_csv_lowers_no_limit_of_other_tables(tmp_path):
    """The library's limit belongs to the process: price tables are read by it too."""
    before = csv.field_size_limit()
    assert [*prompt_files._of_csv("prompt\nhi\n", "p.csv", None)]
    assert csv.field_size_limit() >= before
