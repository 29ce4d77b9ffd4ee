import pytest
import tiny_models


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An autoencoder's random parameters, and a file of the reference with them."""
    params = tiny_models.random_params(tiny_models.model("autoencoder"))
    path = tmp_path_factory.mktemp("whole") / "reference.safetensors"
    return params, tiny_models.save(path, tiny_models.reference_state("autoencoder", params))
