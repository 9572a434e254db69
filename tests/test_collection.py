"""Searches for cycles of dead objects are put off, and come back."""

import gc

import pytest

from zc import collection


def test_put_off():
    with collection.put_off():
        assert not gc.isenabled()
        with collection.put_off():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_brings_them_back():
    with pytest.raises(ValueError, match="wrong"), collection.put_off():
        raise ValueError("wrong")
    assert gc.isenabled()


def test_who_has_none_gets_none():
    gc.disable()
    try:
        with collection.put_off():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
