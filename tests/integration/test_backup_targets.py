"""Every target does what the conformance suite asks, which users run on their own targets too."""

from __future__ import annotations

from typing import Any

import pytest

from llmspell_dist.backup.targets import conformance

pytestmark = [pytest.mark.integration, pytest.mark.backup]

MANY = conformance.lists_and_removes_many
CHECKS = [check for check in conformance.CHECKS if check is not MANY]


@pytest.fixture
def target(every_place):
    """An open target on each row."""
    target = every_place.open()
    yield target
    target.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_target_conforms(target, check):
    """Each check holds on folders, moto and Ceph's radosgw."""
    check(target)


@pytest.mark.parametrize("row", ["folder", pytest.param("moto", marks=pytest.mark.slow), "radosgw"])
def test_targets_list_and_remove_many_objects(places, row):
    """More objects than fit into one call are listed and removed; moto takes long for them."""
    target = places(row).open()
    MANY(target)
    target.close()


def test_a_target_that_does_not_conform_is_found_out(place):
    """The checks fail on targets that forget, mix up, overwrite or keep: they can fail."""
    target = place.open()
    real = target.put
    # Each change breaks a rule, which its check must see.
    broken: dict[conformance.Check, dict[str, Any]] = {
        conformance.returns_what_was_put: {"get": lambda _: b""},
        conformance.puts_again: {"put": lambda *args, **more: real(*args, **more) and None},
        conformance.streams_files: {"put": lambda name, data: real(name, _read(data)[:-1])},
        conformance.says_what_is_missing: {"get": lambda _: b""},
        conformance.leaves_alone_what_is_there: {"put": lambda name, data, **_: real(name, data)},
        conformance.lets_one_of_several_win: {"put": lambda name, data, **_: real(name, data)},
        conformance.lists_in_order: {
            "list": lambda *args, real=target.list, **_: iter(list(real(*args))[::-1])
        },
        conformance.removes: {"delete": lambda _: None},
        conformance.refuses_bad_names: {"head": lambda _: None},
    }
    for check, changes in broken.items():
        with pytest.MonkeyPatch.context() as patch:
            for name, change in changes.items():
                patch.setattr(target, name, change, raising=True)
            with pytest.raises(AssertionError):
                check(target)
    target.close()


def _read(data):
    return data if isinstance(data, bytes) else data.read(-1)
