from mae_jax.output import tables


def test_table_and_duration():
    assert tables.table([["a", "bb"], ["long name", "1"]]) == "a          bb\nlong name   1"
    assert tables.duration(3 * 3600 + 62) == "3:01:02"
