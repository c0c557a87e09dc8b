"""Does plugin_name keep the contract of mmdiff?"""

from mmdiff.testing import check_plugin


def test_conformance():
    """The same as ``mmdiff check plugin_name``."""
    check_plugin("plugin_name")
