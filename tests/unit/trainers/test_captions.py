from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from pydantic import ValidationError

from adapters.errors import UserInputError
from trainers.captions import CaptionConfig, caption_of, caption_variants, caption_warnings
from trainers.images import Picture

TAGS = "sks dog, grass, sunny, ball, park, running"


def a_picture(folder: Path, caption: str | bytes | None = None, name: str = "one.jpg", suffix: str = ".txt") -> Picture:
    path = folder / name
    if caption is not None:
        raw = caption if isinstance(caption, bytes) else caption.encode()
        path.with_suffix(suffix).write_bytes(raw)
    return Picture(path, "0" * 64, 100, 100, mask_path=None, has_alpha=False)


def a_config(**changes: object) -> CaptionConfig:
    return CaptionConfig(**{"trigger": "sks", "class_word": "dog", **changes})


def test_a_picture_without_a_caption_file_gets_the_filled_in_template(tmp_path):
    assert caption_of(a_picture(tmp_path), a_config()) == "a photo of a sks dog"


def test_without_a_class_the_template_leaves_no_gap(tmp_path):
    assert caption_of(a_picture(tmp_path), a_config(class_word="")) == "a photo of a sks"


def test_a_blank_trigger_is_refused():
    with pytest.raises(ValidationError, match="trigger"):
        a_config(trigger="  ")


@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_a_caption_file_beside_the_picture_is_read(tmp_path, suffix):
    assert caption_of(a_picture(tmp_path, "sks dog on grass", suffix=suffix), a_config()) == "sks dog on grass"


@pytest.mark.parametrize(
    "raw", [codecs.BOM_UTF8 + "sks, Grün".encode(), "sks, Grün".encode("utf-16"), "sks,\r\n Grün\n".encode()]
)
def test_byte_order_marks_and_line_breaks_do_not_reach_the_caption(tmp_path, raw):
    assert caption_of(a_picture(tmp_path, raw), a_config()) == "sks, Grün"


def test_caption_files_are_ignored_when_asked(tmp_path):
    picture = a_picture(tmp_path, "sks dog on grass")
    assert caption_of(picture, a_config(from_files=False)) == "a photo of a sks dog"


def test_an_empty_caption_file_means_the_template(tmp_path):
    assert caption_of(a_picture(tmp_path, " \n"), a_config()) == "a photo of a sks dog"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a dog on grass", "a sks dog on grass"),
        ("A Dog on grass", "A sks Dog on grass"),
        ("hotdogs, mustard", "sks, hotdogs, mustard"),
        ("a SKS dog", "a SKS dog"),
        ("a {trigger} {class}", "a sks dog"),
    ],
)
def test_the_trigger_is_put_before_the_class_word_or_in_front_where_it_is_missing(tmp_path, written, expected):
    assert caption_of(a_picture(tmp_path, written), a_config()) == expected


def test_an_added_trigger_is_told(tmp_path):
    (warning,) = caption_warnings([a_picture(tmp_path, "a dog")], a_config())
    assert "'sks'" in warning and "one.jpg" in warning


def test_pictures_that_lack_a_caption_file_others_have_are_told(tmp_path):
    pictures = [a_picture(tmp_path, "sks dog"), a_picture(tmp_path, name="two.jpg")]
    (warning,) = caption_warnings(pictures, a_config())
    assert "two.jpg" in warning and "one.jpg" not in warning


def test_an_unknown_placeholder_in_the_template_is_refused_with_the_nearest_known_one():
    with pytest.raises(ValidationError, match=r"\{triger\}.*did you mean \{trigger\}"):
        a_config(template="a {triger}")


def test_an_unknown_placeholder_in_a_caption_file_names_the_file(tmp_path):
    with pytest.raises(UserInputError, match=r"one\.txt.*\{clas\}"):
        caption_of(a_picture(tmp_path, "a {clas}"), a_config())


def test_braces_that_are_no_placeholder_are_left_alone(tmp_path):
    assert caption_of(a_picture(tmp_path, "sks {red, blue} :}"), a_config()) == "sks {red, blue} :}"


def test_a_caption_that_is_not_utf8_is_refused_with_its_name(tmp_path):
    with pytest.raises(UserInputError, match=r"one\.txt is not text in UTF-8"):
        caption_of(a_picture(tmp_path, b"sks \xff\xfa caf\xe9"), a_config())


@pytest.mark.parametrize("caption", [TAGS, "a photo of a sks dog"])
def test_the_first_variant_is_the_caption_as_it_is(caption):
    assert caption_variants(caption, a_config(shuffle_tags=True), "x")[0] == caption


@pytest.mark.parametrize("caption", ["a photo of a sks dog", "sks dog, grass"])
def test_there_is_one_variant_where_nothing_can_be_shuffled(caption):
    assert caption_variants(caption, a_config(shuffle_tags=True), "x") == [caption]


def test_there_is_one_variant_unless_shuffling_or_dropping_is_asked_for():
    assert caption_variants(TAGS, a_config(), "x") == [TAGS]


def test_variants_are_different_and_as_many_as_asked():
    found = caption_variants(TAGS, a_config(shuffle_tags=True, variants=8), "x")
    assert len(found) == len(set(found)) == 8


def test_shuffling_keeps_every_tag():
    for variant in caption_variants(TAGS, a_config(shuffle_tags=True), "x"):
        assert sorted(variant.split(", ")) == sorted(TAGS.split(", "))


def test_kept_tags_stay_in_front_in_their_order():
    config = a_config(shuffle_tags=True, tag_dropout=0.5, keep_tokens=2, variants=8)
    assert all(variant.startswith("sks dog, grass") for variant in caption_variants(TAGS, config, "x"))


def test_dropping_never_drops_the_trigger():
    config = a_config(tag_dropout=0.9, keep_tokens=0, variants=16)
    assert all("sks dog" in variant.split(", ") for variant in caption_variants(TAGS, config, "x"))


def test_tags_are_dropped_as_often_as_asked():
    tags = ["sks"] + [f"tag{i}" for i in range(1000)]
    variant = caption_variants(", ".join(tags), a_config(tag_dropout=0.3, variants=2), "x")[1]
    assert 1000 - len(variant.split(", ")) == pytest.approx(300, abs=50)


def test_variants_follow_from_the_seed_text_alone():
    config = a_config(shuffle_tags=True, tag_dropout=0.2)
    assert caption_variants(TAGS, config, "x") == caption_variants(TAGS, config, "x")
    assert caption_variants(TAGS, config, "x") != caption_variants(TAGS, config, "y")
