"""What several tests of commands share."""

import pytest


@pytest.fixture(scope="session")
def host_bundle(cli, tiny_bundle, tiny_store, tmp_path_factory):
    """The tiny build again for this machine; all but its measurement is taken from the store."""
    folder = tmp_path_factory.mktemp("host") / "host-tiny"
    done = cli("build", "--target", "host", "--profile", "tiny", "--store", tiny_store, "--out", folder, "--quiet")
    assert done.returncode == 0, done.stderr
    return folder
