from mae_jax.training.run_directory import RunDirectory


def test_runs_of_version_0_1_keep_their_choice_of_examples(tmp_path):
    """Their statistics.json does not say that `data.examples` is balanced over classes."""
    statistics, config = tmp_path / "statistics.json", tmp_path / "config.json"
    assert RunDirectory(tmp_path).draws_balanced
    statistics.write_text('{"examples": 64}')
    assert RunDirectory(tmp_path).draws_balanced  # without a config the run never began
    config.write_text("{}")
    assert not RunDirectory(tmp_path).draws_balanced
    statistics.write_text('{"examples": 64, "balanced": true}')
    assert RunDirectory(tmp_path).draws_balanced
