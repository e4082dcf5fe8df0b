import pytest

import weights_convert


@pytest.fixture(scope="module")  # adapters leave rounding behind in the reference
def pipelines(tmp_path_factory):
    """The reference's random pipeline and the same one as ours, read from its saved folder."""
    from parity import models

    root = tmp_path_factory.mktemp("pipelines")
    weights_convert.diffusers.write_tokenizer(models.tiny_tokenizer(), root / "tables")
    theirs = models.reference_pipeline(root / "tables")
    theirs.save_pretrained(root / "theirs")
    ours = weights_convert.open(root / "theirs")
    ours.set_progress_bar_config(disable=True)
    return ours, theirs
