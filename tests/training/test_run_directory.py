from mae_jax.training import run_directory


def test_runs_of_version_0_1_keep_their_choice_of_examples(tmp_path):
    """Their statistics.json does not say that `data.examples` is balanced over classes."""
    statistics, config = tmp_path / "statistics.json", tmp_path / "config.json"
    assert run_directory.draws_balanced(tmp_path)
    statistics.write_text('{"examples": 64}')
    assert run_directory.draws_balanced(tmp_path)  # without a config the run never began
    config.write_text("{}")
    assert not run_directory.draws_balanced(tmp_path)
    statistics.write_text('{"examples": 64, "balanced": true}')
    assert run_directory.draws_balanced(tmp_path)
