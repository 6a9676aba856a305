"""Two attempts at the same rows, in any interleaving with each other and with a run that tidies up behind them.

Attempts only add objects, under names of their own, so that two of them commute; what counts is what a run sees when it
lists a folder. Late objects therefore arrive just before a listing that shows them, and every interleaving is like one
of those. After any write, of whomever, everybody may die: the next run must leave each row once.
"""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
from attempts import RUN, Attempt, arriving, frozen, noted, numbered, outputs
from engine import engine, examples, one_by_one
from hypothesis import given
from hypothesis import strategies as st
from schedules import Drawn, Every


def interleaved(output, early, late, schedule, pipeline=one_by_one):
    """Let one attempt end somewhere, and then a run go on while late ones do.

    Returns what is on disk before, after each write of the run, and at its end; with each, what is still to come.
    """
    puts = output.puts(early)
    waiting = [list(output.puts(one)) for one in late]
    output.fill(puts[: schedule.choose(len(puts) + 1)])
    states = [(output.state(), frozen(waiting))]

    def note(name):
        output.learn([name])  # at once: the run itself may delete it, where a late attempt comes before it
        states.append((output.state(), frozen(waiting)))

    with engine(pipeline), arriving(output, waiting, schedule), noted(note, deletions=True), numbered(RUN):
        summary = output.run()
    assert summary.exit_code in {0, 6}, summary.message
    return states


def ways(start, rows):
    """Return all ways to cut the rows from `start` into ranges, as borders."""
    between = range(start + 1, rows)
    return [(start, *cuts, rows) for number in range(len(between) + 1) for cuts in combinations(between, number)]


def pairs(rows):
    """Return all pairs of attempts: one at all rows, one at those that it finds undone.

    Whose names sort first decides between two receipts of the same range, and nothing else.
    """
    return [
        (Attempt(one, name), Attempt(other, "4"))
        for start in range(rows)
        for one, other in product(ways(0, rows), ways(start, rows))
        for name in ("37" if {*pairwise(one)} & {*pairwise(other)} else "3")
    ]


SMALL = [(early, late) for early, late in pairs(2) if 0 in late.borders and len(early.borders + late.borders) < 6]


def test_wherever_two_attempts_end_the_next_run_leaves_each_row_once():
    """Attempts at three rows, cut in all ways, that die at any step."""
    with outputs(rows=3) as output:
        for pair in (pair for pair in pairs(3) if pair[0].name == "3"):
            for ends in product(*(range(len(output.puts(one)) + 1) for one in pair)):
                output.heal(frozenset().union(*(output.puts(one)[:end] for one, end in zip(pair, ends, strict=True))))


@pytest.mark.parametrize(("early", "late"), SMALL)
def test_whenever_late_objects_arrive_the_next_run_leaves_each_row_once(early, late):
    """Attempts at two rows: one has died anywhere, the other goes on during a run, and then everybody dies anywhere."""
    with outputs(rows=2) as output:
        running = output.replay(RUN)

        def converges(schedule):
            for names, waiting in interleaved(output, early, [late], schedule, running):
                for end in range(len(waiting[0]) + 1):
                    output.heal(names.union(waiting[0][:end]))

        Every().play(converges)


@st.composite
def attempts(draw, name):
    """Draw ranges of four rows that somebody scores."""
    return Attempt(tuple(sorted(draw(st.sets(st.integers(0, 4), min_size=2)))), name)


@pytest.fixture(scope="module")
def output():
    """One output for all examples."""
    with outputs(rows=4) as found:
        yield found


@examples(0.3)
@given(attempts("3"), attempts("4"), attempts("7"), st.lists(st.integers(0, 9), max_size=40), st.integers(0, 30))
def test_any_three_attempts_and_a_run_leave_each_row_once(output, early, late, later, choices, death):
    """Four rows, and real work in every run: two attempts are late, in any interleaving, and anybody dies anywhere."""
    schedule = Drawn(choices)
    states = interleaved(output, early, [late, later], schedule)
    for names, waiting in (states[-1], states[death % len(states)]):
        output.heal(names.union(*(one[: schedule.choose(len(one) + 1)] for one in waiting)))
