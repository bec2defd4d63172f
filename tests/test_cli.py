"""The command line: what is printed, what is written, exit codes, one clear line for each error."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

from gradlib import __version__
from gradlib.cli import main
from gradlib.commands import bench, info, kernels

LINES = ["great day,good", "great sun,good", "so great,good", "awful day,bad", "awful rain,bad", "so awful,bad"]


def write(folder: Path, lines=None, header="text,label", encoding="utf-8", name="data.csv"):
    file = folder / name
    file.write_bytes("\n".join([header, *(LINES * 4 if lines is None else lines)]).encode(encoding))
    return str(file)


def fit(file, out, *more):
    return main(["fit", file, "--text", "text", "--label", "label", "--out", str(out), "--quiet", *more])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    assert fit(write(folder), folder / "m") == 0
    return str(folder / "m")


def failed(capsys, status, *texts):
    """The command failed with one line on stderr that holds the texts."""
    err = capsys.readouterr().err
    assert status == 1 and err.count("\n") == 1 and err.startswith("gradlib ")
    for text in texts:
        assert text in err


# --- fit, predict, explain --------------------------------------------------------------------------------------------


def test_fit_says_what_it_did(tmp_path, capsys):
    assert fit(write(tmp_path), tmp_path / "m") == 0
    shown = capsys.readouterr().out
    assert "24 texts, 2 classes" in shown and str(tmp_path / "m") in shown
    assert (tmp_path / "m" / "weights.safetensors").is_file()


def test_predict_prints_one_line_a_text(model, capsys):
    assert main(["predict", model, "a great\nday", "awful"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [(r[0], r[2]) for r in rows] == [("good", "a great day"), ("bad", "awful")]
    assert all(0.5 <= float(r[1]) <= 1 for r in rows)


def test_predict_of_a_file_as_json(model, tmp_path, capsys):
    file = write(tmp_path, ["1,great day", "2,", "3,awful rain"], header="id,text")
    assert main(["predict", model, "--file", file, "--text", "text", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["text"] for r in rows] == ["great day", "", "awful rain"]
    assert rows[0]["label"] == "good" and rows[2]["label"] == "bad"
    assert sum(rows[1]["probabilities"].values()) == pytest.approx(1, abs=1e-6)


def test_explain_as_table_and_json(model, capsys):
    assert main(["explain", model, "So great!"]) == 0
    table = capsys.readouterr().out
    assert "predicted: good" in table and "great" in table and "bad" in table
    assert main(["explain", model, "So great!", "--json", "--target", "logit"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["words"] == ["so", "great", "!"] and found["target"] == "logit" and len(found["values"][0]) == 2


def test_options_reach_the_classifier(tmp_path):
    fit(write(tmp_path), tmp_path / "m", "--epochs", "2", "--min-df", "5", "--seed", "7")
    params = json.loads((tmp_path / "m" / "config.json").read_text())["params"]
    assert (params["max_iter"], params["min_df"], params["random_state"]) == (2, 5, 7)


@pytest.mark.parametrize(("encoding", "option"), [("utf-8-sig", []), ("cp1252", ["--encoding", "cp1252"])])
def test_encodings(tmp_path, encoding, option):
    file = write(tmp_path, [line.replace("great", "gränd") for line in LINES * 4], encoding=encoding)
    assert fit(file, tmp_path / "m", *option) == 0
    assert "gränd" in json.loads((tmp_path / "m" / "vocabulary.json").read_text())


def test_delimiters_quotes_and_blank_lines(tmp_path, capsys):
    lines = ['"great; ""day""\nit was"\tgood', "", "awful\tbad"] * 5
    assert fit(write(tmp_path, lines, header="text\tlabel"), tmp_path / "m", "--delimiter", "tab") == 0
    assert "10 texts" in capsys.readouterr().out


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "header", "messages"),
    [
        (None, "content,label", ["'text'", "'content', 'label'"]),
        (None, "text,text", ["more than one column named 'text'"]),
        ([], "text,label", ["no rows"]),
        (["great day,good", "fine, warm day,good"], "text,label", ["line 3 has 3 fields, the header has 2"]),
        (["great day,good", "fine day"], "text,label", ["line 3 has 1 fields"]),
        (['"a\nb",good', " ,good", "x,"], "text,label", ["2 of 3 rows", "line 4", "--skip-empty"]),
        ([",", ","], "text,label", ["2 of 2 rows"]),
        (["a b,good", "c d,good"], "text,label", ["at least 2 classes", "'good'"]),
        (["aa bb,good", "cc dd,bad"], "text,label", ["min_df"]),
        (["# $,good", ". -,bad"], "text,label", ["no words"]),
        (["a\0b,good", "c" * 200_000 + ",bad"], "text,label", ["valid CSV"]),
    ],
)
def test_bad_csv(tmp_path, capsys, lines, header, messages):
    failed(capsys, fit(write(tmp_path, lines, header), tmp_path / "m"), *messages)
    assert not (tmp_path / "m").exists()


def test_broken_encoding_names_line_and_option(tmp_path, capsys):
    file = write(tmp_path, [*LINES, "caf\xe9,good"], encoding="latin-1")
    failed(capsys, fit(file, tmp_path / "m"), "line 8", "0xe9", "--encoding")
    failed(capsys, fit(file, tmp_path / "m", "--encoding", "nonsense"), "nonsense")


def test_skip_empty(tmp_path, capsys):
    assert fit(write(tmp_path, [*LINES * 2, ",good", "x y,"]), tmp_path / "m", "--skip-empty") == 0
    assert "12 texts, 2 classes, 2 rows left out" in capsys.readouterr().out
    failed(capsys, fit(write(tmp_path, [",", ","]), tmp_path / "n", "--skip-empty"), "all 2 rows")


def test_missing_file(tmp_path, capsys):
    failed(capsys, fit(str(tmp_path / "none.csv"), tmp_path / "m"), "no such file", "none.csv")
    failed(capsys, fit(str(tmp_path), tmp_path / "m"), "no such file")


def test_output_folder_is_checked_before_training(tmp_path, capsys, monkeypatch):
    file, out = write(tmp_path), tmp_path / "m"
    assert fit(file, out, "--epochs", "1") == 0
    capsys.readouterr()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with monkeypatch.context() as patch:
        patch.setattr("gradlib.text.TextClassifier.fit", lambda *a: pytest.fail("trained"))
        failed(capsys, fit(file, out), "--force")
        failed(capsys, fit(file, tmp_path / "mine"), "not a gradlib model")
        failed(capsys, fit(file, tmp_path / "mine", "--force"), "not a gradlib model")
    assert fit(file, out, "--force", "--epochs", "1") == 0
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_predict_needs_texts_and_a_model(model, tmp_path, capsys):
    failed(capsys, main(["predict", model]), "--file")
    failed(capsys, main(["predict", model, "x", "--file", "y.csv"]), "--file")
    failed(capsys, main(["predict", model, "--file", write(tmp_path)]), "--text")
    failed(capsys, main(["predict", str(tmp_path / "none"), "x"]), "none")
    (tmp_path / "empty").mkdir()
    failed(capsys, main(["explain", str(tmp_path / "empty"), "x"]), "config.json")
    failed(capsys, fit(write(tmp_path), tmp_path / "m", "--delimiter", ",,"), "--delimiter")


@pytest.mark.parametrize(
    "argv",
    [[], ["bogus"], ["fit"], ["fit", "a.csv", "--text", "t", "--label", "l", "--out", "o", "--epochs", "0"],
     ["info", "--bogus"], ["demo", "--limit", "3"], ["explain", "m", "x", "--target", "loss"]],
)  # fmt: skip
def test_wrong_usage_is_status_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and "usage: gradlib" in capsys.readouterr().err


# --- the other commands -----------------------------------------------------------------------------------------------


def test_help_and_version_load_nothing_heavy():
    heavy = "sklearn", "matplotlib", "cupy", "numba", "scipy", "jax"
    code = f"""
import sys
from gradlib.cli import main
for option in ("--version", "--help"):
    try: main([option])
    except SystemExit as stop: assert stop.code == 0
print([name for name in {heavy!r} if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"gradlib {__version__}" and lines[-1] == "[]"
    for command in ("demo", "fit", "predict", "explain", "info", "kernels", "bench"):
        assert any(line.strip().startswith(command) for line in lines)


def test_interrupt_and_missing_extra(monkeypatch, capsys):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "info", stop)
    assert main(["info"]) == 130 and "interrupted" in capsys.readouterr().err

    def lack(arguments):
        raise ModuleNotFoundError('needs tqdm: pip install "gradlib[text]"')

    monkeypatch.setattr(info, "info", lack)
    failed(capsys, main(["info"]), "gradlib[text]")


def test_info_names_versions_and_what_is_missing(capsys, monkeypatch):
    found = info._version
    monkeypatch.setattr(info, "_version", lambda name: None if name in ("tqdm", "greenlet") else found(name))
    monkeypatch.setattr(info, "_gpus", lambda: ["none found"])
    assert main(["info"]) == 0
    shown = capsys.readouterr().out
    for text in (f"gradlib {__version__}", "Python", "numpy", "numba", "optree", "CPU:", "GPU: none found"):
        assert text in shown
    assert 'pip install "gradlib[text]"' in shown and 'pip install "gradlib[sim]"' in shown


ZERO = {"arch": "sm_90", "dtype": "float32"} | dict.fromkeys(kernels.COLUMNS[2:], 0)
ROW = ZERO | {"registers": 20, "vector_loads": 4}


@pytest.mark.parametrize("faults", [[], ["relu-float32 sm_90: 99 registers"]])
def test_kernels_prints_rows_and_fails_with_the_gate(monkeypatch, capsys, faults):
    from gradlib.kernels import compiler, inspection, ratchet

    asked = {}
    monkeypatch.setattr(compiler, "versions", lambda: "compiler 1")
    monkeypatch.setattr(ratchet, "worse", lambda rows, compiler: [])
    monkeypatch.setattr(ratchet, "gone", lambda rows: [])

    def inspect_all(archs, only=""):
        asked.update(archs=archs, only=only)
        return [ROW | {"name": "relu-float32", "instructions": 9, "load_bytes": 8, "store_bytes": 4}]

    monkeypatch.setattr(inspection, "inspect_all", inspect_all)
    monkeypatch.setattr(inspection, "gate", lambda rows: faults)
    assert main(["kernels", "--arch", "sm_90", "--only", "relu"]) == (1 if faults else 0)
    shown = capsys.readouterr()
    assert asked == {"archs": ("sm_90",), "only": "relu"}
    assert shown.out.splitlines()[0].split() == list(kernels.COLUMNS)
    assert " ".join(shown.out.splitlines()[1].split()) == "relu-float32 sm_90 20 0 0 9 3.0 8 4 4 0"
    assert ("99 registers" in shown.err) == bool(faults)
    assert main(["kernels", "--json"]) == (1 if faults else 0)
    assert json.loads(capsys.readouterr().out)[0]["name"] == "relu-float32"


def test_kernels_without_a_match(monkeypatch, capsys):
    from gradlib.kernels import inspection

    monkeypatch.setattr(inspection, "inspect_all", lambda archs, only="": [])
    failed(capsys, main(["kernels", "--only", "nothing"]), "no kernel matches")
    failed(capsys, main(["kernels", "--only", "["]), "not a regular expression")


def test_kernels_that_got_worse_fail(monkeypatch, capsys, tmp_path):
    from gradlib.kernels import compiler, inspection, ratchet

    rows = [ROW | {"name": "relu-float32"}, ROW | {"name": "relu-float32", "arch": "sm_80", "registers": 99}]
    monkeypatch.setattr(compiler, "versions", lambda: "compiler 1")
    monkeypatch.setattr(ratchet, "FILE", tmp_path / "figures.json")
    monkeypatch.setattr(inspection, "inspect_all", lambda archs, only="": rows)
    monkeypatch.setattr(inspection, "gate", lambda rows: [])
    failed(capsys, main(["kernels"]), "relu-float32 is not recorded: run gradlib kernels --record")
    assert main(["kernels", "--record"]) == 0 and main(["kernels"]) == 0
    rows[0] = rows[0] | {"instructions": 9}
    failed(capsys, main(["kernels"]), "relu-float32: 9 instructions, recorded are 0")
    rows[0] = rows[0] | {"instructions": 0}
    rows.append(ROW | {"name": "elu-float32"})
    assert main(["kernels", "--record"]) == 0
    del rows[2]
    failed(capsys, main(["kernels"]), "elu-float32 is recorded, but there is no such kernel")
    failed(capsys, main(["kernels", "--record", "--only", "elu"]), "--record takes all kernels")


def test_bench_forwards_its_arguments(monkeypatch):
    called = []
    monkeypatch.setattr(bench.subprocess, "call", lambda command: called.extend(command) or 3)
    assert main(["bench", "--rounds", "2", "softmax", "--help"]) == 3
    assert called[0] == sys.executable and called[1].endswith("run.py")
    assert called[2:] == ["--rounds", "2", "softmax", "--help"]
    called.clear()
    assert main(["bench", "--gpu", "--rehearse"]) == 3
    assert Path(called[1]).parts[-2:] == ("gpu", "run.py") and called[2:] == ["--rehearse"]


def test_bench_without_a_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site" / "gradlib" / "commands" / "bench.py"))
    failed(capsys, main(["bench"]), "checkout")
