"""Calls to Prefect's API that are retried for some seconds only."""


def test_only_the_number_of_retries_is_different_in_the_block() -> None:
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, get_current_settings

    from prefect_dist.flows.api import brief

    before = get_current_settings()
    with brief():
        assert PREFECT_CLIENT_MAX_RETRIES.value() == 2
        inside = get_current_settings()
    assert PREFECT_CLIENT_MAX_RETRIES.value() == before.client.max_retries == 5
    assert inside.model_dump() | {"client": None} == before.model_dump() | {"client": None}
    assert inside.client.model_dump() == before.client.model_dump() | {"max_retries": 2}
