import numpy as np
import polars as pl
import pytest

import tfmetarec as tmr
from tfmetarec.tasks.episode import Support
from tfmetarec.transfer.translation import UserTranslation, translated_teacher


def vocabulary(users, items, **options):
    """Of a shop whose every user met every item."""
    rows = [(user, item) for user in users["user_id"] for item in items["item_id"]]
    table = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    kinds = {"bio": "text"} if "bio" in users else {}
    data = tmr.data.Interactions.from_frames(
        table, pl.DataFrame(users), pl.DataFrame(items), feedback="implicit", kinds=kinds, name="shop"
    )
    return tmr.data.Vocabulary.fit(data, **options)


USERS = {"user_id": [1, 2, 3], "city": ["Ulm", "Lyon", "Rome"], "age": [20.0, 30.0, 40.0], "bio": ["a b", "c", "a"]}
ITEMS = {"item_id": [5, 7, 9], "brand": ["x", "y", "x"]}


def test_user_features_are_found_by_their_values():
    here = vocabulary(USERS, ITEMS)
    there = vocabulary(
        {"user_id": [1, 4], "city": ["Rome", "Ulm"], "age": [40.0, 60.0], "bio": ["c", "d a"], "sex": ["f", "m"]},
        ITEMS,
        max_list_length=4,
    )
    frame = pl.DataFrame({"user_id": [1, 2, 3, 8], **{n: [*v, None] for n, v in USERS.items() if n != "user_id"}})
    came, wanted = (v.encode_frame("user", frame) for v in (here, there))
    translated = UserTranslation(here, there)(came)
    assert set(translated) == set(wanted)
    for name, value in wanted.items():
        if name != "age" and not name.startswith("bio"):
            np.testing.assert_array_equal(translated[name], value, err_msg=name)
    # (40 - 50) / std: the third user; what is missing, and the mean itself, count as the mean.
    deviation = np.std([40.0, 60.0], ddof=1)
    np.testing.assert_allclose(translated["age"], [-30 / deviation, 0.0, -10 / deviation, 0.0], rtol=1e-5)
    rows = there.known_values("user", "bio").tolist()
    assert translated["bio"].shape == (4, 4)
    assert translated["bio"][0, 0].numpy() == rows.index("a") + 1
    assert translated["bio_length"].numpy().tolist() == [2, 1, 1, 0]


def test_items_pass_as_they_are():
    here = vocabulary(USERS, ITEMS)
    features = {"item_id": np.int32([1, 2])}
    assert UserTranslation(here, here)(features) is features


@pytest.fixture(scope="module")
def teacher():
    return tmr.meta.Ridge(tmr.models.TwoTower(vocabulary(USERS, ITEMS), 4))


def support(vocabulary, items):
    rows = vocabulary.item_rows([items])
    item = {name: value[rows] for name, value in vocabulary.catalogue.items()}
    users = vocabulary.encode_frame("user", pl.DataFrame({"user_id": [1], "city": ["Rome"]}))
    return Support(users, item, np.ones(rows.shape, np.float32), np.int32([rows.shape[1]]))


def test_a_teacher_says_the_same_of_the_same_items_in_other_rows(teacher):
    student = vocabulary(
        {"user_id": [1, 2], "city": ["Rome", "Oslo"]}, {"item_id": [7, 5, 11], "brand": ["y", "x", "x"]}
    )
    translated = translated_teacher(teacher, student)
    said = translated.candidates(support(student, [5]), [student.catalogue])
    own = teacher.vocabulary
    alone = teacher.score(teacher.adapt(support(own, [5])), own.catalogue).numpy()[0]
    # Rows of the student: nothing, 5, 7, 11. Of the teacher: nothing, 5, 7, 9.
    assert said.present.numpy().tolist() == [[0.0, 1.0, 1.0, 0.0]]
    np.testing.assert_allclose(said.score.numpy()[0, 1:3], alone[1:3], rtol=1e-5)


def test_an_item_that_the_teacher_has_no_row_for_is_scored_by_its_content(teacher):
    student = vocabulary({"user_id": [1, 2], "city": ["Rome", "Oslo"]}, {"item_id": [7, 11], "brand": ["y", "x"]})
    translated = translated_teacher(teacher, student, unknown_items="content")
    said = translated.candidates(support(student, [7]), [student.catalogue])
    own = teacher.vocabulary
    new = own.encode_frame("item", pl.DataFrame({"brand": ["x"]}))
    alone = teacher.score(teacher.adapt(support(own, [7])), new).numpy()[0]
    assert said.present.numpy().tolist() == [[0.0, 1.0, 1.0]]
    np.testing.assert_allclose(said.score.numpy()[0, 2], alone[0], rtol=1e-5)


def test_catalogues_with_nothing_in_common_are_refused_with_both_sizes(teacher):
    student = vocabulary({"user_id": [1]}, {"item_id": [70, 71], "brand": ["x", "y"]})
    with pytest.raises(ValueError, match="at least one .* Received: none of"):
        translated_teacher(teacher, student)
    with pytest.raises(ValueError, match="`unknown_items` must be one of 'leave_out', 'content'"):
        translated_teacher(teacher, student, unknown_items="ignore")


def test_a_teacher_without_a_vocabulary_is_refused(teacher):
    with pytest.raises(ValueError, match="needs a vocabulary, and this learner has none"):
        translated_teacher(object(), teacher.vocabulary)
