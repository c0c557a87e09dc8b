"""Does timeseries keep the contract of mmdiff?"""

from mmdiff.testing import check_plugin


def test_conformance():
    """The same as ``mmdiff check timeseries``."""
    check_plugin("timeseries")
