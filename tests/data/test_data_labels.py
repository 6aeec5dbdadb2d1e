"""People's preferences: consent, blind orders, a journal that survives kills, published measures, rows for tuning."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from click.testing import CliRunner

from lmworks.cli.main import cli
from lmworks.core.errors import DataError
from lmworks.core.lineage import load_manifest, verify
from lmworks.data.journal import Journal
from lmworks.data.labels.app import label_app
from lmworks.data.labels.items import read_items
from lmworks.data.labels.publish import publish, read_labels
from lmworks.data.labels.study import JOURNAL, Study
from lmworks.data.rows.load import load_labeled, load_preferences

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pairs(folder, count=6):
    rows = [
        {"prompt": [{"role": "user", "content": f"Question {n}?"}],
         "chosen": [{"role": "assistant", "content": f"good {n}"}],
         "rejected": [{"role": "assistant", "content": f"bad {n}"}], "id": f"p{n}", "language": "en"}
        for n in range(count)
    ]  # fmt: skip
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def study(tmp_path):
    study = Study(tmp_path / "labels", read_items(pairs(tmp_path)))
    yield study
    study.close()


@pytest.fixture
def client(study):
    from starlette.testclient import TestClient

    with TestClient(label_app(study), base_url="http://127.0.0.1") as client:
        yield client


def good_side(shown):
    return "left" if shown["left"][0]["text"].startswith("good") else "right"


def post(client, path, **fields):
    return client.post(path, json=fields)


def sign_in(client, name):
    assert post(client, "/api/consent", annotator=name, version=client.get("/api/study").json()["version"]).json()


def work(client, name, choose, most=99):
    """Label open items until none is left; what was shown."""
    seen = []
    while len(seen) < most and (shown := post(client, "/api/items", annotator=name).json())["item"]:
        seen.append(shown)
        choice = choose(shown)
        told = post(client, "/api/labels", annotator=name, item=shown["item"], choice=choice, note=f"n{len(seen)}")
        assert told.json() == {"done": True}
    return seen


def test_annotators_see_every_item_once_blind_and_in_orders_of_their_own(client, study):
    seen = {}
    for name in ("Ann", "Ben", "吴"):
        sign_in(client, name)
        seen[name] = work(client, name, good_side)
    orders = {name: tuple(one["item"] for one in some) for name, some in seen.items()}
    assert len(set(orders.values())) == 3
    assert all(sorted(order) == sorted(study.items) for order in orders.values())
    assert {good_side(one) for some in seen.values() for one in some} == {"left", "right"}
    assert not any(word in json.dumps(seen) for word in ("chosen", "rejected", '"p0"'))
    assert all(label.verdict != "tie" for label in study.labels_of("Ann").values())


def test_nothing_is_shown_or_stored_without_consent(client, study):
    for path, fields in (("/api/items", {}), ("/api/labels", {"item": next(iter(study.items)), "choice": "tie"})):
        assert post(client, path, annotator="Ann", **fields).status_code == 403
    assert post(client, "/api/consent", annotator="Ann", version="old").status_code == 400
    sign_in(client, "نوش\u200cآفرین")
    sign_in(client, " Ann ")
    assert post(client, "/api/items", annotator="Ann").status_code == 200
    told = [entry for entry in read_journal(study) if "consent" in entry]
    assert [entry["annotator"] for entry in told] == ["نوش\u200cآفرین", "Ann"]
    assert {entry["consent"] for entry in told} == {study.version}
    assert read_journal(study)[0]["consent_text"] == study.consent


def read_journal(study):
    return study._journal.entries


def test_a_new_consent_text_is_agreed_to_anew(tmp_path):
    items = read_items(pairs(tmp_path))
    first = Study(tmp_path / "labels", items, "Text one.")
    first.agree("Ann", first.version)
    first.label("Ann", items[0].id, "tie")
    first.close()
    second = Study(tmp_path / "labels", items, "Text two.")
    assert not second.agreed("Ann")
    with pytest.raises(DataError, match="has not agreed"):
        second.label("Ann", items[1].id, "tie")
    second.agree("Ann", second.version)
    second.label("Ann", items[1].id, "left")
    second.close()
    state = read_labels(tmp_path / "labels").state
    assert sorted(state.texts.values()) == ["Text one.", "Text two."]
    assert {label.consent for label in state.labels.values()} == {first.version, second.version}


BAD = [
    ({"annotator": "Ann", "item": "x", "choice": "left"}, "no item"),
    ({"annotator": "Ann", "choice": "both"}, "'both' is none"),
    ({"annotator": "Ann", "choice": 3}, "not a text"),
    ({"annotator": "Ann", "choice": "tie", "note": "x" * 5000}, "too long"),
    ({"annotator": "Ann", "choice": "tie", "note": "\ud800"}, "no text"),
    ({"annotator": " "}, "no name"), ({"annotator": "a\u202eb"}, "no name"), ({"annotator": "x" * 81}, "no name"),
    ({"annotator": 3}, "no 'annotator'"), ([], "no 'annotator'"), ({}, "no 'annotator'"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), BAD)
def test_bad_requests_are_named_and_store_nothing(body, message, client, study):
    sign_in(client, "Ann")
    before = list(read_journal(study))
    if isinstance(body, dict) and "choice" in body:
        body = {"item": next(iter(study.items)), **body}
    reply = client.post("/api/labels", content=json.dumps(body), headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert message in reply.json()["error"]
    assert read_journal(study) == before


def test_pages_of_other_sites_cannot_post_or_read(client, study):
    sign_in(client, "Ann")
    body = json.dumps({"annotator": "Ann"})
    assert client.post("/api/withdraw", content=body, headers={"content-type": "text/plain"}).status_code == 400
    assert client.get("/api/study", headers={"host": "evil.example"}).status_code == 400
    long = client.post("/api/items", content="x" * (1 << 17), headers={"content-type": "application/json"})
    assert long.status_code == 400
    assert study.agreed("Ann")
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in re.findall(r'"/page/([\w.]+)"', page.text):
        assert client.get(f"/page/{name}").status_code == 200
    assert client.get("/page/journal.jsonl").status_code == 404


def test_choices_can_be_changed_and_the_last_one_counts(client, study):
    sign_in(client, "Ann")
    (first, *_) = work(client, "Ann", lambda _: "left")
    again = post(client, "/api/items", annotator="Ann", at=0).json()
    assert (again["item"], again["choice"], again["note"]) == (first["item"], "left", "n1")
    post(client, "/api/labels", annotator="Ann", item=first["item"], choice="right")
    assert post(client, "/api/items", annotator="Ann", at=0).json()["choice"] == "right"
    assert len(study.labels_of("Ann")) == 6
    assert sum("label" in entry for entry in read_journal(study)) == 7
    assert post(client, "/api/items", annotator="Ann", at=6).status_code == 400
    assert post(client, "/api/items", annotator="Ann").json()["item"] is None


def test_many_annotators_at_once_lose_nothing(client, study):
    names = [f"A{n}" for n in range(8)]
    for name in names:
        sign_in(client, name)
    threads = [threading.Thread(target=work, args=(client, name, good_side)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(read_labels(study._journal._file.parent).state.labels) == 48


def test_what_most_prefer_becomes_rows_and_the_withdrawn_leave(client, study, tmp_path):
    def bad_side(shown):
        return "right" if good_side(shown) == "left" else "left"

    for name, choose in (("Ann", good_side), ("Ben", good_side), ("Eve", bad_side), ("Mal", bad_side)):
        sign_in(client, name)
        work(client, name, choose)
    sign_in(client, "Tia")
    work(client, "Tia", lambda _: "tie", most=2)
    with pytest.raises(DataError, match=r"no item .* gives a preference .*'undecided': 6"):
        publish(tmp_path / "labels", tmp_path / "out")
    post(client, "/api/withdraw", annotator="Mal")
    assert post(client, "/api/items", annotator="Mal").status_code == 403
    manifest = publish(tmp_path / "labels", tmp_path / "out")
    assert verify(tmp_path / "out") == manifest
    assert manifest.metrics == {"preferences": 6, "annotators_withdrawn": 1}
    assert {parent.role for parent in load_manifest(tmp_path / "out").parents} == {"items", "journal"}
    rows = load_preferences(tmp_path / "out/preferences.jsonl")
    assert all(row.chosen[0].content.startswith("good") for row in rows)
    assert sorted(row.extra["lineage"]["parents"][0] for row in rows) == [f"p{n}" for n in range(6)]
    votes = [row.extra["lineage"]["votes"] for row in rows]
    assert sorted(vote.pop("tie") for vote in votes) == [0, 0, 0, 0, 1, 1]
    assert all(vote == {"chosen": 2, "rejected": 1} for vote in votes)
    labeled = load_labeled(tmp_path / "out/labeled.jsonl")
    assert [(row.label, row.completion[0].content[:3]) for row in labeled] == [(True, "goo"), (False, "bad")] * 6
    text = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    assert not any(name in text for name in ("Ann", "Ben", "Eve", "Mal", "Tia"))
    sign_in(client, "Mal")  # anew: what was withdrawn stays withdrawn
    assert study.labels_of("Mal") == {}
    result = CliRunner().invoke(cli, ["data", "agreement", str(tmp_path / "labels"), "--output", str(tmp_path / "o"),
                                      "--min-labels", "4"])  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "2 preferences, 4 too_few_labels" in result.output
    assert re.search(r"Cohen's kappa: Ann, Ben\s+1.000", result.output)


def test_a_row_that_is_forgotten_leaves_the_preferences_made_of_it(client, tmp_path):
    sign_in(client, "Ann")
    work(client, "Ann", good_side)
    publish(tmp_path / "labels", tmp_path / "out")
    result = CliRunner().invoke(cli, ["data", "forget", "p3", "--root", str(tmp_path), "--apply"])
    assert result.exit_code == 0, result.output
    for name, count in (("preferences.jsonl", 5), ("labeled.jsonl", 10)):
        text = (tmp_path / "out" / name).read_text()
        assert len(text.splitlines()) == count
        assert "Question 3?" not in text
    verify(tmp_path / "out")


def test_the_order_of_the_row_says_nothing(tmp_path):
    """A row and its mirror image are one item."""
    row = {"prompt": "q ", "chosen": "a", "rejected": "b"}
    mirrored = {**row, "chosen": "b", "rejected": "a"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(mirrored) + "\n")
    assert len(read_items(tmp_path / "p.jsonl")) == 1
    for bad, reason in (({"text": "t"}, "no two answers"), ({**row, "rejected": "a"}, "are the same")):
        (tmp_path / "bad.jsonl").write_text(json.dumps(bad))
        with pytest.raises(DataError, match=reason):
            read_items(tmp_path / "bad.jsonl")


def test_labels_of_other_items_and_of_two_servers_are_refused(tmp_path):
    items = read_items(pairs(tmp_path))
    study = Study(tmp_path / "labels", items)
    with pytest.raises(DataError, match="held by another process"):
        Study(tmp_path / "labels", items)
    study.close()
    with pytest.raises(DataError, match=r"other settings \(items\)"):
        Study(tmp_path / "labels", items[1:])
    with pytest.raises(DataError, match=r"other settings \(seed\)"):
        Study(tmp_path / "labels", items, seed=1)
    assert len(read_labels(tmp_path / "labels").items) == 6
    with pytest.raises(DataError, match="holds no labels"):
        read_labels(tmp_path)
    (tmp_path / "labels" / JOURNAL).unlink()
    with pytest.raises(DataError, match="is missing"):
        read_labels(tmp_path / "labels")
    with pytest.raises(DataError, match="consent text is empty"):
        Study(tmp_path / "labels", items, " \n")


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_cut_by_a_kill_is_the_only_loss(cut, tmp_path):
    with Journal(tmp_path / "j.jsonl", {"of": "a test"}) as journal:
        for number in range(3):
            journal.append({"number": number, "text": "中" * 9})
    whole = (tmp_path / "j.jsonl").read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    (tmp_path / "j.jsonl").write_bytes(whole[: min(last + cut, len(whole) - 1)])
    with Journal(tmp_path / "j.jsonl", {"of": "a test"}) as journal:
        assert [entry["number"] for entry in journal.entries] == [0, 1]
        journal.append({"number": 2, "text": "中" * 9})
    assert (tmp_path / "j.jsonl").read_bytes() == whole
    (tmp_path / "j.jsonl").write_bytes(b"no json\n")
    with pytest.raises(DataError, match="is not a journal"):
        Journal(tmp_path / "j.jsonl", {})


def start(folder, *more):
    """The command in a process of its own, and the address it tells."""
    command = [sys.executable, "-m", "lmworks", "data", "label", str(folder / "pairs.jsonl"), "--output",
               str(folder / "labels"), "--port", "0", *more]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    return process, re.search(r"http://\S+", process.stdout.readline())[0]


def test_no_label_that_was_answered_is_lost_by_a_kill(tmp_path):
    pairs(tmp_path, 40)
    answered = {}
    chance = random.Random(5)
    for _ in range(2):
        process, url = start(tmp_path)
        try:
            with httpx.Client(base_url=url, timeout=20) as client:
                sign_in(client, "Ann")
                stop = threading.Timer(chance.uniform(0.05, 0.3), process.send_signal, (signal.SIGKILL,))
                stop.start()
                try:
                    for shown in iter(lambda: post(client, "/api/items", annotator="Ann").json(), None):
                        if shown["item"] is None:
                            break
                        assert shown["item"] not in answered
                        choice = chance.choice(["left", "right", "tie"])
                        post(client, "/api/labels", annotator="Ann", item=shown["item"], choice=choice)
                        answered[shown["item"]] = choice
                except httpx.TransportError:
                    pass
                stop.join()
        finally:
            process.kill()
            process.wait(20)
            process.stdout.close()
    stored = read_labels(tmp_path / "labels").state.labels
    kept = {item: "tie" if label.verdict == "tie" else "left" if label.verdict == label.left else "right"
            for (_, item), label in stored.items()}  # fmt: skip
    assert answered.items() <= kept.items()
    assert len(kept) - len(answered) <= 2  # a label may be stored and its answer not sent


def test_mistakes_of_the_command_are_named(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = CliRunner().invoke(cli, ["data", "label", str(pairs(tmp_path)), "--output", str(tmp_path / "l"),
                                          "--port", str(taken.getsockname()[1])])  # fmt: skip
    assert "cannot listen" in str(result.exception)
    result = CliRunner().invoke(cli, ["data", "label", str(pairs(tmp_path)), "--output", str(tmp_path / "l"),
                                      "--consent", str(tmp_path / "none.txt")])  # fmt: skip
    assert "cannot be read" in str(result.exception)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (chromium, google-chrome)")
def test_the_page_in_a_browser(tmp_path):
    from playwright.sync_api import sync_playwright

    pairs(tmp_path, 3)
    process, url = start(tmp_path)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            complaints = []
            page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda e: complaints.append(str(e)))
            page.on("dialog", lambda dialog: dialog.accept())
            page.set_default_timeout(10_000)
            page.goto(url)
            page.get_by_label("Your name").fill("Ann")
            page.get_by_label("I have read this").check()
            page.get_by_role("button", name="Begin").click()
            page.locator("#prompt").filter(has_text="Question").wait_for()
            page.keyboard.press("n")
            page.keyboard.type("1 of note")
            page.keyboard.press("Escape")
            page.keyboard.press("1")
            page.locator("#progress").filter(has_text="1 of 3").wait_for()
            page.keyboard.press("Backspace")
            page.locator("#left.chosen").wait_for()
            assert page.get_by_label("Note").input_value() == "1 of note"
            page.get_by_title("The right answer is better").click()
            page.locator(".chosen").wait_for(state="detached")
            page.reload()
            page.locator("#progress").filter(has_text="1 of 3").wait_for()
            page.keyboard.press("ArrowDown")
            page.locator("#progress").filter(has_text="2 of 3").wait_for()
            page.keyboard.press("2")
            page.get_by_text("That was the last one").wait_for()
            time.sleep(0.1)
            labels = read_labels(tmp_path / "labels").state.labels
            assert sorted(label.verdict == "tie" for label in labels.values()) == [False, False, True]
            assert any(label.note == "1 of note" for label in labels.values())
            page.get_by_role("button", name="Withdraw").click()
            page.get_by_text("consent is withdrawn").wait_for()
            assert read_labels(tmp_path / "labels").state.labels == {}
            assert complaints == []
            browser.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
        process.stdout.close()
    assert (tmp_path / "labels" / JOURNAL).exists()
