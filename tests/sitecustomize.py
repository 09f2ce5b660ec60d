"""Read by Python when it starts: the processes that tests start are guarded as the tests themselves are."""

import read_guard


read_guard.start()
