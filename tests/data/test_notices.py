"""Lines of the log that a process writes once."""

import logging
from concurrent.futures import ThreadPoolExecutor

from mae_jax.data import notices

LOG = logging.getLogger(__name__)


def test_a_line_is_logged_once_for_its_arguments_by_any_thread(caplog):
    caplog.set_level("INFO")
    with ThreadPoolExecutor(8) as pool:
        [*pool.map(lambda i: notices.once(LOG.info, "%s of %d", (4, 5), i % 2), range(400))]
    assert sorted(caplog.messages) == ["(4, 5) of 0", "(4, 5) of 1"]
    notices.once(LOG.warning, "100% of them")  # a text without arguments is not formatted
    notices.once(LOG.warning, "100% of them")
    assert caplog.messages[2:] == ["100% of them"] and caplog.records[2].levelname == "WARNING"
