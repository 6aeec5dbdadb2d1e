"""What tasks are made of: right answers where they say, held-out text only, the same items for the same seed."""

import pytest

from lmworks.core.generation import Document
from lmworks.core.messages import Message
from lmworks.evals.inputs import read_inputs
from lmworks.evals.task import Inputs, Sample
from lmworks.evals.tasks import TASKS


@pytest.fixture
def inputs(corpus, conversations, questions):
    return read_inputs(corpus, conversations=conversations, questions=questions, models=[])


@pytest.mark.parametrize("name", TASKS)
def test_items_follow_from_the_seed_and_the_limit(inputs, name):
    build = TASKS[name].build
    assert build(inputs, 4, 1) == build(inputs, 4, 1)
    assert len(build(inputs, 4, 1)) == 4
    assert any(build(inputs, 4, 1) != build(inputs, 4, seed) for seed in range(2, 6))
    assert len(build(inputs, 1000, 1)) <= 64


@pytest.mark.parametrize("name", TASKS)
def test_a_task_without_its_input_has_no_items(name):
    assert TASKS[name].build(Inputs((), ()), 5, 0) == []


def test_cloze_continues_held_out_documents(inputs):
    texts = [d.text for d in inputs.validation]
    questions = TASKS["cloze"].build(inputs, 50, 0)
    for q in questions:
        assert len(set(q.choices)) == 4
        assert any(text.startswith(q.context + q.choices[q.answer]) for text in texts)
        others = [c for i, c in enumerate(q.choices) if i != q.answer]
        assert all(any(c in text for text in texts) for c in others)
        assert not any(text.startswith(q.context + c) for c in others for text in texts)
        assert all(c.startswith(" ") for c in q.choices)
    assert len({q.answer for q in questions}) > 1, "the right answer has no fixed place"


@pytest.mark.parametrize("text", ["", "short", "x" * 1000, "x" * 90 + " " + "y" * 1000, "word " * 40])
def test_cloze_passes_over_texts_it_cannot_cut(text):
    assert TASKS["cloze"].build(Inputs((), [Document(str(i), text + str(i)) for i in range(9)]), 9, 0) == []


def test_recall_completes_definitions_from_the_training_text(inputs):
    prompts = TASKS["wiki-recall"].build(inputs, 50, 0)
    assert prompts[0].text == "Number 0 is a"
    assert prompts[0].references == ("river in Spain",)
    assert len(prompts) == len(inputs.train)
    assert not TASKS["wiki-recall"].heldout


def test_recall_is_graded_on_the_first_words_and_contained_anywhere(inputs):
    task = TASKS["wiki-recall"]
    prompt = task.build(inputs, 1000, 0)[0]
    grades = {
        answer: tuple(task.grade(prompt, Sample("", answer, "stop")).values())
        for answer in ("river in Spain and more", "big river in Spain", "river in Peru", "")
    }
    assert grades["river in Spain and more"] == (1.0, 1.0, 1.0)
    assert grades["big river in Spain"] == (0.0, pytest.approx(2 / 3), 1.0)
    assert grades["river in Peru"] == (0.0, pytest.approx(2 / 3), 0.0)
    assert grades[""] == (0.0, 0.0, 0.0)


def test_format_asks_what_comes_before_the_first_answer(inputs):
    (prompt, *_) = TASKS["format"].build(inputs, 50, 0)
    assert prompt.text == (Message(role="user", content="What is 0?"),)
    assert prompt.references == ("It is 0.",)


@pytest.mark.parametrize(
    ("answer", "finish_reason", "grade"),
    [
        ("It is 0.", "stop", 1),
        ("It is 0.", "length", 0),
        (" \n", "stop", 0),
        ("It is.<|im_end|>\n<|im_start|>user", "stop", 0),
    ],
)
def test_format_wants_something_said_and_the_turn_ended(answer, finish_reason, grade):
    task = TASKS["format"]
    assert task.grade(None, Sample("", answer, finish_reason)) == {"answered": grade}


def test_boolq_takes_validation_questions_with_their_label(inputs):
    questions = TASKS["boolq"].build(inputs, 50, 0)
    assert len(questions) == 6
    assert questions[1].context == "About the number 1.\nQuestion: is 1 even?\nAnswer:"
    assert [q.choices[q.answer] for q in questions] == [" yes", " no"] * 3
