from lmworks.core.messages import Message
from lmworks.tune.held_out import choose


def chats(count, answers=1):
    return [
        [Message(role="user", content=f"q{i}"), Message(role="assistant", content=f"a{j}")]
        for i in range(count)
        for j in range(answers)
    ]


def prompts(conversations):
    return {c[0].content for c in conversations}


def test_no_prompt_stands_on_both_sides():
    training, held_out = choose(chats(100, answers=3), held_out=20, at_most=None, seed=0)
    assert len(held_out) == 18  # whole prompts only
    assert len(training) == 282
    assert not prompts(training) & prompts(held_out)


def test_the_seed_chooses_and_the_order_of_the_data_does_not():
    everything = chats(100)
    first = choose(everything, held_out=10, at_most=30, seed=0)
    again = choose(everything[::-1], held_out=10, at_most=30, seed=0)
    other = choose(everything, held_out=10, at_most=30, seed=1)
    assert [prompts(side) for side in first] == [prompts(side) for side in again]
    assert prompts(first[1]) != prompts(other[1])
    assert [len(side) for side in first] == [30, 10]
    assert first[0] == [c for c in everything if c in first[0]]  # in the order given


def test_little_data_is_not_eaten_by_measuring():
    training, held_out = choose(chats(25), held_out=200, at_most=None, seed=0)
    assert (len(training), len(held_out)) == (23, 2)
    assert choose(chats(5), held_out=200, at_most=None, seed=0)[1] == []
