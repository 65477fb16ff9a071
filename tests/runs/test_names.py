"""Names of output folders: any that the file system takes is a run that can be continued and sampled, or one line; nothing else."""

import os
import tempfile
from pathlib import Path

import pytest
from conftest import tiny
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from small_runs import StopAfter, train

from psgjax.commands import sample as sampling
from psgjax.config import ConfigError

pytestmark = pytest.mark.uncovered

CHARACTERS = st.sampled_from(" -~:=#%&+,;@!'\"\\\n\t{}()<>|$`^.한é🙂ab0[]*?") | st.characters(exclude_characters="\0/")
NAMES = st.text(CHARACTERS, min_size=1, max_size=12).filter(lambda name: bool(name.strip(".")))


@given(NAMES)
@example("[1] *? 한글")
@example("-out")
@example("[bold]x[/] :smile:.")
@example("a\nb")
@example("n" * 300)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name_is_a_run_or_one_line(data, name):
    config = tiny("gan", steps=20)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name
        try:
            os.fsencode(folder)
            assert not train(config, data, folder, StopAfter(2)).finished
            assert train(config, data, folder).finished
            _, state, image_shape = sampling.load(folder)
            assert (int(state.step), image_shape) == (20, (8, 8, 1))
        except (ConfigError, OSError, UnicodeEncodeError) as error:  # what every command says in one line
            assert str(error)
            assert not os.listdir(parent)
