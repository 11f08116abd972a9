"""The bug zoo: every symptom is produced by running its bug, every diagnosis is answered, nothing spoils the hunt, and the certificate is a picture that can be read aloud."""

import functools
import re
import subprocess
import xml.etree.ElementTree as ET

import nbformat
import pytest
import torch
from gpt2_course import check, doctor
from gpt2_course.exercises import zoo

from conftest import REPO

BUGS = sorted(zoo.BUGS)
CHAPTER = REPO / "nbs/tough/26_bug_zoo.ipynb"
PROCESSES = {"zoo.drifting_twins", "zoo.chorus", "zoo.loaded_dice", "zoo.silence", "zoo.short_rations"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    "progress.json and the certificate are written where the reader is"
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Digests are compared bit by bit, and matrices this small gain nothing from a second core"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


symptom = functools.cache(zoo.symptom)  # each bug is run once


def test_the_zoo_is_large():
    assert len(BUGS) >= 20 and sorted(n for n in check.REGISTRY if n.startswith("zoo.")) == BUGS


@pytest.mark.parametrize("name", BUGS)
def test_every_diagnosis_is_answered(name):
    bug, right = zoo.BUGS[name], zoo.right_letter(zoo.BUGS[name])
    for letter, (text, reply) in zoo.shown(bug).items():
        said = zoo.diagnose(name, f" {letter.upper()} ")
        assert said.state == ("right" if letter == right else "mistake") and reply in said.message and text in said.message
    assert check.read_tally()["diagnoses"][name] == dict(state="right", tries=len(bug.choices))


@pytest.mark.parametrize("name", BUGS)
def test_who_has_not_chosen_sees_the_choices(name):
    for nothing in ("…", "", None, 7, "z", ...):
        said = zoo.diagnose(name, nothing)
        assert said.state == "open" and all(text in said.message for text, _ in zoo.BUGS[name].choices)
    assert "diagnoses" not in check.read_tally()


@pytest.mark.parametrize("name", BUGS)
def test_bug_is_well_made(name):
    bug = zoo.BUGS[name]
    assert len(bug.choices) >= 4 and len({text for text, _ in bug.choices}) == len({reply for _, reply in bug.choices}) == len(bug.choices)
    assert (REPO / "nbs" / bug.chapter).exists()
    assert bug.report == "" or re.fullmatch(r"https://github.com/[\w.-]+/[\w.-]+/(issues|pull)/\d+", bug.report)
    assert bug.title not in check.find(name).task, "the task gives the bug away"


def test_right_letters_are_spread():
    letters = [zoo.right_letter(zoo.BUGS[name]) for name in BUGS]
    assert all(letters.count(letter) < len(BUGS) / 2 for letter in "abcd") and len(set(letters)) == 4


def test_unknown_bug_names_the_nearest():
    with pytest.raises(KeyError, match="still_water"):
        zoo.diagnose("zoo.still_watr", "a")


def words(name):
    return symptom(f"zoo.{name}").split()


# --- what the symptoms claim ---


@pytest.mark.parametrize("name", [n for n in BUGS if n not in PROCESSES])
def test_symptom_runs(name):
    found = symptom(name)
    assert found and (isinstance(found, (list, dict)) or "Traceback" not in found)


def test_digests_tell():
    first, second, third = re.findall(r"weights (\w{8})", symptom("zoo.still_water"))[:3]
    assert first == second != third
    end, loaded, one_less = re.findall(r"weights (\w{8})", symptom("zoo.yesterday"))
    assert loaded == one_less != end
    best, last = re.search(r"weights (\w{8}); the last had (\w{8})", symptom("zoo.mirror")).groups()
    assert best == last
    same, apart = re.findall(r"wte (\w{8})   lm_head (\w{8})", symptom("zoo.divorce"))[1:]
    assert same[0] == same[1] and apart[0] != apart[1]


def test_numbers_tell():
    tide = symptom("zoo.high_tide")
    assert tide["losses"][0] == tide["losses"][1] > tide["law"] + 0.3 and tide["stream"][-1] > 10 * tide["stream"][0]
    parrot = symptom("zoo.parrot")
    assert parrot["losses"][-1] < 0.3 and parrot["unseen"] < 0.5 < parrot["bigram"] and parrot["leak"] == 0
    prophet = symptom("zoo.prophet")
    later = [prophet["moved"][i, j] for i in range(32) for j in range(i + 1, 32)]
    assert max(later) > 0.01 and prophet["unseen"] < prophet["bigram"]
    off = symptom("zoo.stammer")["off"]
    assert off[0] < 1e-4 and min(off[1:]) > 1e-2
    norms = [float(line.split("norm")[1].split(",")[0]) for line in symptom("zoo.brass_band").splitlines()]
    assert norms[-1] == pytest.approx(16 * norms[0], rel=1e-3)
    beats = symptom("zoo.heartbeat")
    assert min(beats[2::2]) > 1.3 * max(beats[1::2]) and len(beats) == 10
    still = symptom("zoo.standstill")
    assert 0 < still["moved"] < 1e-3 and min(still["norms"]) > 1e4 and abs(still["losses"][-1] - still["losses"][0]) < 0.1
    assert all(v[-1] < 0.6 for v in symptom("zoo.wither")["means"].values())
    drawn = symptom("zoo.lottery")
    assert drawn["drawn"].argmax() == 9 and drawn["full"][9] < 0.05
    assert len(set(symptom("zoo.restless")["losses"])) > 1
    assert 0 < int(words("coin_toss")[0]) < 40


def test_the_doctor_finds_what_can_be_found():
    def names(rows):
        return {f["name"] for f in doctor.diagnose(doctor.Patient("a run", rows, {}, {}))}

    assert "periodic" in names(symptom("zoo.tide")) and names(symptom("zoo.black_hole")) == {"nan"}
    assert names(symptom("zoo.night_watch")) == set()
    rows = symptom("zoo.black_hole")
    first = next(r for r in rows if r["loss"] != r["loss"])
    assert first["targets"] == 0


def test_ranks_say_what_they_did_and_none_is_left():
    before = children()
    twins = symptom("zoo.drifting_twins")
    assert len(twins) == 16 and all(len({r["weights"] for r in twins if r["step"] == s}) == 2 for s in range(1, 9))
    chorus = symptom("zoo.chorus")
    assert len(chorus) == 8 and all(len({(r["loss"], r["weights"]) for r in chorus if r["step"] == s}) == 1 for s in range(1, 5))
    assert all(r["own_norm"] == pytest.approx(r["averaged_norm"], rel=1e-6) for r in chorus)
    dice = symptom("zoo.loaded_dice")
    assert len({r["kept"] for r in dice}) == 3 and len({r["batch"] for r in dice}) == 2
    silence = symptom("zoo.silence")
    assert [r["at"] for r in silence if r["rank"] == 0 and "at" in r][-1] == "is done, waits for the others"
    assert max(r["step"] for r in silence if r["rank"] == 1 and "step" in r) == 6 and not any("goes home" in str(r) for r in silence)
    short = symptom("zoo.short_rations")
    assert any("invalid for input of size 47" in r.get("ended", "") for r in short if r["rank"] == 1)
    assert children() == before


def children():
    "Processes of this module's workers"
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    return sorted(line for line in listed.splitlines() if "import one_rank" in line)


# --- the chapter ---


def test_the_chapter_shows_every_bug_and_spoils_none():
    cells = nbformat.read(CHAPTER, as_version=4).cells
    source = "\n".join(cell.source for cell in cells)
    for name, bug in zoo.BUGS.items():
        assert all(call in source for call in (f'symptom("{name}")', f'diagnose("{name}", "…")', f'check("{name}", my_')), name
    open_cells = [cell for cell in cells if "<details>" not in cell.source]
    told = "\n".join(cell.source + "".join(o.get("text", "") for o in cell.get("outputs", [])) for cell in open_cells)
    assert [bug.title for bug in zoo.BUGS.values() if bug.title in told] == []
    for cell in cells:
        if "<details>" in cell.source:
            assert cell.source.startswith("<details>") and cell.source.endswith("</details>")


def test_the_table_names_every_report():
    (table,) = [cell.source for cell in nbformat.read(CHAPTER, as_version=4).cells if "| cage | bug |" in cell.source]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(BUGS)
    for name, bug in zoo.BUGS.items():
        (row,) = [r for r in rows if f"| {name.removeprefix('zoo.').replace('_', ' ')} |" in r]
        assert bug.title in row and bug.seen in row and (bug.report or "found by running it") in row


# --- progress and the certificate ---


def test_certificate_is_a_picture_with_words():
    svg = check.certificate({"easy": (3, 3), "medium": (1, 4), "tough": (0, 0)}, "2026-01-31")
    root = ET.fromstring(svg)
    text = {e.get("id"): e.text for e in root}
    assert root.get("role") == "img" and root.get("aria-labelledby") == "t d"
    assert text["t"] and "easy: 3 of 3, complete; medium: 1 of 4; tough: 0 of 0" in text["d"] and "2026-01-31" in text["d"]
    widths = [int(e.get("width")) for e in root if e.tag.endswith("rect") and e.get("fill") == "#0072B2"]
    assert widths == [200, 50, 0]


def test_progress_shows_levels_and_writes_the_certificate(tmp_path, capsys):
    check.progress()
    assert not (tmp_path / "certificate.svg").exists(), "nothing done yet, nothing to certify"
    check.check("zoo.snail", check.answer("zoo.snail"))
    check.progress()
    told = capsys.readouterr().out
    assert all(level in told for level in ("easy: 0 of", "medium: 0 of", "tough: 1 of", "chapter 26")) and "certificate.svg" in told
    assert "tough: 1 of" in (tmp_path / "certificate.svg").read_text("utf-8")


def test_every_chapter_has_a_level():
    check.load_all()
    assert all(any(int(e.chapter) in numbers for numbers in check.LEVELS.values()) for e in check.REGISTRY.values())


def test_visited_counts(capsys):
    zoo.diagnose("zoo.snail", zoo.right_letter(zoo.BUGS["zoo.snail"]))
    zoo.visited()
    assert capsys.readouterr().out == f"the zoo has {len(BUGS)} bugs: 1 diagnosed, 0 mended\n"
