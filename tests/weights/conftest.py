import hub_server
import pytest
import tiny_models


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """An autoencoder's random parameters, and a file of the reference with them."""
    params = tiny_models.random_params(tiny_models.model("autoencoder"))
    path = tmp_path_factory.mktemp("whole") / "reference.safetensors"
    return params, tiny_models.save(path, tiny_models.reference_state("autoencoder", params))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub with a cache of its own, which `huggingface_hub` uses."""
    with hub_server.running() as server:
        constants = pytest.importorskip("huggingface_hub.constants")
        settings = dict(
            ENDPOINT=server.url, HF_HUB_OFFLINE=False, HF_HUB_CACHE=str(tmp_path / "hf")
        )
        settings["HUGGINGFACE_CO_URL_TEMPLATE"] = (
            f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again
        yield server
