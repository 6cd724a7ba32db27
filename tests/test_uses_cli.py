"""The commands for what CLIP is used for, on real files with a tiny CLIP."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_embed import ClipEmbedder, evaluate_retrieval, explain_labels
from clip_embed._models.opening import default_model
from clip_embed.cli import main
from clip_embed.demo import photos


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photos in two folders, a copy of one of them, and a broken one."""
    folder = tmp_path_factory.mktemp("album")
    for place, path in enumerate(photos()[:6]):
        kind = folder / ("first" if place < 3 else "second")
        kind.mkdir(exist_ok=True)
        shutil.copy(path, kind)
    shutil.copy(photos()[0], folder / "second" / "copy.jpg")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    return folder


@pytest.fixture
def run(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run `clip-embed` in this process with the tiny CLIP."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", str(clip_folder))

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(main, [str(each) for each in arguments])

    return invoke


def test_classify_takes_words_several_labels_and_explains(run, album: Path) -> None:  # noqa: ANN001
    """Each does what it does in Python, on the vectors of the same photos."""
    words = {"first": ["red", "dark red"], "second": ["blue"]}
    labels = [f"{label}={','.join(each)}" for label, each in words.items()]
    answer = json.loads(run("classify", album, *labels, "--other", "rest", "--json").stdout)
    paths = [str(album / row["path"]) for row in answer]
    clip = ClipEmbedder(default_model())
    expected = clip.classify(paths, words, other="rest")
    assert tuple(row["label"] for row in answer) == expected.best
    several = json.loads(run("classify", album, *labels, "--multi", "--json").stdout)
    found = clip.classify(paths, words, multi=True)
    assert [tuple(row["labels"]) for row in several] == found.above(0.5)
    table = run("classify", album, *labels, "--multi")
    assert table.stdout.count(f"{found.labels[0]} 0.") == sum("first" in row for row in found.above(0.5))
    report = explain_labels(clip, paths, words, templates="many")
    assert run("classify", album, *labels, "--templates", "many", "--explain").stdout == f"{report}\n"
    facts = json.loads(run("classify", album, *labels, "--explain", "--json").stdout)
    assert list(facts["agreement"]) == [row["path"] for row in answer]
    assert (len(facts["templates"]), list(facts["spread"])) == (7, ["first", "second"])


def test_similar_finds_the_photo_itself_and_its_copy(run, album: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """Both come first with a score of 1, the broken photo is named, the gallery shows them."""
    page = tmp_path / "page.html"
    result = run("similar", album, photos()[0], "-k", 3, "--json", "--html", page)
    assert result.exit_code == 1
    hits = json.loads(result.stdout)
    assert {hit["path"] for hit in hits[:2]} == {f"first/{photos()[0].name}", "second/copy.jpg"}
    assert [hit["score"] for hit in hits[:2]] == pytest.approx([1, 1], abs=1e-4)
    assert "broken.jpg" in result.stderr
    assert page.read_text().count("<figure>") == 3


def test_similar_takes_texts_away_and_diversity(run, album: Path) -> None:  # noqa: ANN001
    """What is unlike comes last; diversity leaves the copy out; nothing to look for is a usage error."""
    name = photos()[0]
    away = run("similar", album, "--text", "a red car", "--unlike", name, "-k", 7, "--json")
    assert {hit["path"] for hit in json.loads(away.stdout)[-2:]} == {f"first/{name.name}", "second/copy.jpg"}
    varied = run("similar", album, name, "-k", 2, "--diversity", 0.9, "--json")
    assert sum(hit["score"] > 0.999 for hit in json.loads(varied.stdout)) == 1
    assert run("similar", album).exit_code == 2
    assert run("similar", album, "missing.jpg").exit_code == 2


def test_duplicates_lists_the_copy(run, album: Path) -> None:  # noqa: ANN001
    """One group of two files with the same content; people are told how many there are."""
    result = run("duplicates", album, "--threshold", 0.9999, "--json")
    rows = json.loads(result.stdout)
    assert [(row["group"], row["path"]) for row in rows] == [
        (1, f"first/{photos()[0].name}"),
        (1, "second/copy.jpg"),
    ]
    assert "2 of 7 photos, in 1 groups" in result.stderr
    assert run("duplicates", album, "--threshold", 2).exit_code == 2


def test_fit_learns_folders_and_predict_names_photos(run, album: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """Folders are labels; what was saved names the photos, by the model it was fitted with."""
    target = tmp_path / "album.classifier"
    fitted = run("fit", album, "-o", target, "--json")
    assert fitted.exit_code == 1  # the broken photo
    facts = json.loads(fitted.stdout)
    assert facts["labels"] == ["first", "second"]
    assert [facts["accuracy"][name] for name in ("images", "fewest", "folds")] == [7, 3, 3]
    answer = run("predict", album, target, "--json")
    named = json.loads(answer.stdout)
    known = {row["path"]: row["label"] for row in named}
    assert known["second/" + photos()[4].name] == "second"
    assert sum(sum(row["probabilities"].values()) for row in named) == pytest.approx(7, abs=1e-4)
    assert "nearest mean" in run("fit", album, "-o", target, "--method", "mean").stdout
    assert "probability" in run("predict", album, target).stdout


def test_fit_takes_labels_from_a_table(run, album: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """The CSV decides which photos are examples; without two labels there is nothing to learn."""
    names = [path.name for path in photos()[:6]]
    table = tmp_path / "labels.csv"
    table.write_text(f"file,label\nfirst/{names[0]},a\nfirst/{names[1]},b\nsecond/{names[3]},b\ngone.jpg,c\n")
    facts = json.loads(run("fit", album, "-o", tmp_path / "x", "--labels", table, "--json").stdout)
    assert facts["labels"] == ["a", "b"]
    assert (facts["accuracy"]["images"], facts["accuracy"]["probe"]) == (3, None)
    told = run("fit", album, "-o", tmp_path / "x", "--labels", table).stderr
    assert f"1 files in {table} are no photos below {album}: gone.jpg" in told
    table.write_text("photo,label\n")
    assert (
        "needs the columns file and label"
        in run("fit", album, "-o", tmp_path / "x", "--labels", table).stderr
    )
    table.write_bytes("file,label\nfirst/größe.jpg,a\n".encode("latin-1"))
    wrong = run("fit", album, "-o", tmp_path / "x", "--labels", table)
    assert (wrong.exit_code, "is no CSV in UTF-8" in wrong.stderr) == (2, True)
    single = run("fit", album / "first", "-o", tmp_path / "y")
    assert single.exit_code == 1
    assert "two different labels" in single.stderr
    assert not (tmp_path / "y").exists()
    (tmp_path / "bad").write_text("no classifier")
    assert "is no classifier" in run("predict", album, tmp_path / "bad").stderr


def test_search_says_whether_there_is_a_match(run, clip_folder: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """With --relevance scores are percentiles, a line says where none is high; a few photos are too few."""
    page = tmp_path / "page.html"
    result = run("search", photos()[0].parent, "zzz", "--relevance", "--json", "-k", 44, "--html", page)
    assert result.exit_code == 0
    scores = [hit["relevance"] for hit in json.loads(result.stdout)]
    assert len(scores) == 44
    assert all(0 <= score <= 100 for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert ("No good match" in result.stderr) == (scores[0] < 90)
    assert "<meter" in page.read_text()
    (tmp_path / "few").mkdir()
    shutil.copy(photos()[0], tmp_path / "few")
    few = run("search", tmp_path / "few", "zzz", "--relevance")
    assert few.exit_code == 1
    assert "at least 10 images, not 1" in few.stderr


def test_a_file_of_vectors_is_searched_as_the_message_says(run, tmp_path: Path) -> None:  # noqa: ANN001
    """The command it names finds the same photos as a search of their folder."""
    folder, target = tmp_path / "photos", tmp_path / "o.parquet"
    folder.mkdir()
    for path in photos()[:4]:
        shutil.copy(path, folder)
    assert run("embed", folder, "-o", target).exit_code == 0
    refused = run("search", target, "a red car")
    assert refused.exit_code == 2
    assert f"{target} is a file: vectors in Parquet are searched in SQL" in refused.stderr
    line = next(line for line in refused.stderr.splitlines() if "clip-embed sql" in line)
    found = json.loads(run(*shlex.split(line)[1:], "--json").stdout)
    wanted = json.loads(run("search", folder, "a red car", "--json").stdout)
    assert [row["path"] for row in found] == [row["path"] for row in wanted]
    (tmp_path / "other").write_text("nothing")
    assert "is a file" in run("search", tmp_path / "other", "x").stderr


def test_calibrate_fits_a_policy_and_moderate_lists_what_to_look_at(run, album: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """Thresholds from a table of examples flag those examples; the broken photo is unchecked, not passed."""
    policy, table, page = tmp_path / "policy.json", tmp_path / "labels.csv", tmp_path / "page.html"
    starter = json.loads(run("moderate", "--print-policy").stdout)
    starter[0]["name"] = "chosen"
    policy.write_text(json.dumps(starter[:1]))
    names = [path.name for path in photos()[:6]]
    lines = [f"{'first' if place < 3 else 'second'}/{name}" for place, name in enumerate(names)]
    table.write_text(
        "file,label\n" + "".join(f"{line},{'chosen' * (not n)}\n" for n, line in enumerate(lines))
    )
    fitted = run("calibrate", album, "--policy", policy, "--labels", table, "-o", policy, "--json")
    assert fitted.exit_code == 1  # the broken photo
    assert "thresholds set from too few examples: 'chosen' has 1; " in fitted.stderr
    assert "Warning" not in fitted.stderr
    (figures,) = json.loads(fitted.stdout)
    assert (figures["category"], figures["examples"], figures["recall"]) == ("chosen", 1, 1)
    assert json.loads(policy.read_text())[0]["threshold"] == figures["threshold"]
    answer = run("moderate", album, "--policy", policy, "--html", page, "--json")
    assert answer.exit_code == 1
    verdicts = {row["path"]: row["verdict"] for row in json.loads(answer.stdout)}
    assert verdicts[lines[0]] == verdicts["second/copy.jpg"] == "flag"
    assert verdicts["broken.jpg"] == "unchecked"
    assert page.read_text().count("<figure>") == list(verdicts.values()).count("flag")
    shown = run("moderate", album, "--policy", policy)
    assert lines[0] in shown.stdout
    assert "of 7 photos flagged" in shown.stdout


def test_moderation_says_what_is_wrong_with_its_files(run, album: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """A file that is no policy, a label that is no category, a table that lists none of the photos."""
    policy, table = tmp_path / "policy.json", tmp_path / "labels.csv"
    policy.write_text('{"no": "policy"}')
    assert "this is no policy" in run("moderate", album, "--policy", policy).stderr
    table.write_text(f"file,label\nfirst/{photos()[0].name},nonsense\n")
    assert "no category" in run("calibrate", album, "--labels", table, "-o", policy).stderr
    table.write_text("file,label\nelsewhere.jpg,weapon\n")
    assert "is listed" in run("calibrate", album, "--labels", table, "-o", policy).stderr


def test_evaluate_measures_pairs(run, album: Path, tmp_path: Path) -> None:  # noqa: ANN001
    """Recall is that of Python, several lines of one image are its captions, the broken one is named."""
    captions = {path: [f"photo {path.stem}", path.stem] for path in photos()[:3]}
    lines = [f"first/{path.name},{caption}" for path, each in captions.items() for caption in each]
    table, others = album / "pairs.csv", tmp_path / "others.txt"
    table.write_text("\n".join(["file,caption", *lines]) + "\n")
    others.write_text("nothing\n\nnone of it\n")
    clip = ClipEmbedder(default_model())
    wanted = evaluate_retrieval(
        clip, list(captions), captions.values(), distractors=["nothing", "none of it"]
    )
    assert run("evaluate", table, "--distractors", others).stdout == f"{wanted}\n"
    facts = json.loads(run("evaluate", table, "--distractors", others, "--json").stdout)
    assert (facts["images"], facts["captions"], facts["distractors"]) == (3, 6, 2)
    assert facts["text_to_image"]["recall@1"] == wanted.text_to_image(1)
    table.write_text("\n".join(["file,caption", *lines, "broken.jpg,nothing to see"]))
    broken = run("evaluate", table)
    assert broken.exit_code == 1
    assert "3 images, 6 captions of theirs, 0 of no image; 1 images failed" in broken.stdout
    assert "broken.jpg" in broken.stderr
    table.write_text("file,caption\n")
    assert "no image is left" in run("evaluate", table).stderr
    others.write_bytes(b"\xff\xfe")
    assert "is no text in UTF-8" in run("evaluate", table, "--distractors", others).stderr
    table.write_text("path,text\na,b\n")
    assert run("evaluate", table).exit_code == 2
    table.unlink()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("file;caption\nfirst/a.jpg;a cat\n", "with a comma between them; its first line has 'file;caption'"),
        ("file,text\n", "first line has 'file', 'text'"),
        ("", "first line has nothing"),
        ("file,caption\nfirst/a.jpg,a cat\nfirst/b.jpg,\n", "has no caption for first/b.jpg: leave out"),
    ],
)
def test_a_table_of_pairs_says_what_is_amiss(run, tmp_path: Path, content: str, told: str) -> None:  # noqa: ANN001
    """The columns that were found, or the file whose caption is missing, is named."""
    (tmp_path / "pairs.csv").write_text(content)
    for command in (("evaluate",), ("train", "--to", tmp_path / "model")):
        result = run(*command, tmp_path / "pairs.csv")
        assert result.exit_code == 2
        assert told in " ".join(result.stderr.split())
