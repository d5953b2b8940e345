import pickle

import pytest

from bertray import errors

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_the_way_from_a_worker_to_the_driver(kind: type) -> None:
    copy = pickle.loads(pickle.dumps(kind("what was found, where, what to do")))
    assert type(copy) is kind
    assert str(copy) == "what was found, where, what to do"


def test_the_users_errors_have_exit_code_2_and_ours_1() -> None:
    assert errors.BertrayError.exit_code == 1
    users = [kind for kind in KINDS if issubclass(kind, errors.UserError)]
    assert len(users) >= 6
    assert {kind.exit_code for kind in users} == {2}
