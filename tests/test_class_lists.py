"""Lists of classes and seeds as people type them."""

from pathlib import Path

import pytest

from sid_scale.class_lists import ListError, parse_classes, parse_numbers, read_class_names

NAMES = ["tench, Tinca tinca", "Goldfish", "crane", "golden retriever", "crane", "9"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("88", [88]),
        ("88,207,0-3", [88, 207, 0, 1, 2, 3]),
        (" 3 , 1-2 ,3,", [3, 1, 2]),
        ("5-5", [5]),
        ("000012", [12]),
    ],
)
def test_numbers_and_ranges(text: str, numbers: list[int]):
    assert parse_numbers(text, "seeds") == numbers


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "seeds: the list is empty"),
        (" , ", "seeds: the list is empty"),
        ("1,x", "seeds: 'x' is neither a number nor a range"),
        ("-3", "'-3' is neither"),
        ("1.5", "'1.5' is neither"),
        ("1-2-3", "'1-2-3' is neither"),
        ("9" * 5000, "is neither"),
        ("7-3", "the range 7-3 runs backwards"),
        ("0-999999999999", "holds more than"),
    ],
)
def test_what_is_no_number_is_named(text: str, message: str):
    with pytest.raises(ListError, match=message):
        parse_numbers(text, "seeds")


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("0-2,1", [0, 1, 2]),
        ("GOLDFISH,golden Retriever", [1, 3]),
        ("tinca TINCA", [0]),
        ("tench, Tinca tinca", [0]),
        ("2,goldfish,4", [2, 1, 4]),
    ],
)
def test_classes_by_number_and_name(text: str, classes: list[int]):
    assert parse_classes(text, NAMES, 6) == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("6", "classes: 6 is not within the generator's, 0 to 5"),
        ("4-6", "4-6 is not within"),
        ("9", "9 is not within"),  # a number, though a class bears that name
        ("goldfsh", "none is named 'goldfsh'; did you mean 'goldfish'"),
        ("crane", "'crane' names several, 2, 4"),
    ],
)
def test_classes_that_cannot_be_told(text: str, message: str):
    with pytest.raises(ListError, match=message):
        parse_classes(text, NAMES, 6)


def test_a_thousand_names_are_not_recited():
    names = [f"species {i} of many" for i in range(1000)]
    with pytest.raises(ListError, match=r"'qqq'; classes\.txt lists them$"):
        parse_classes("qqq", names, 1000)


def test_without_names_a_name_says_what_is_missing():
    with pytest.raises(ListError, match=r"no classes\.txt"):
        parse_classes("goldfish", [], 6)


def test_names_are_the_lines_of_a_file(tmp_path: Path):
    assert read_class_names(tmp_path, 2) == []
    (tmp_path / "classes.txt").write_text("null, zéro\r\none\n", encoding="utf-8")
    assert read_class_names(tmp_path, 2) == ["null, zéro", "one"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("content", "message"),
    [(b"one\n", "1 names for 2 classes"), (b"\xff\xfe\n\n", "cannot be read")],
)
def test_a_file_of_names_that_does_not_fit(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "classes.txt").write_bytes(content)
    with pytest.raises(ListError, match=message):
        read_class_names(tmp_path, 2)
